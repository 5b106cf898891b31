//! One run of a child engine: the driver's messages become facts and completions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use flashjob_event::{Events, Fact, FinishReason, RequestId};
use flashjob_model::TextService;

use super::logprobs::WantedLogprobs;
use super::protocol::{RequestEnd, Step};
use crate::backend::{Cause, Completion, Error, Request, RequestError, SpelledLogprobs};

/// State of one run, built from the driver's messages.
pub struct Run<'a> {
    pub engine: &'static str,
    pub texts: Arc<TextService>,
    pub unfinished: BTreeMap<RequestId, Unfinished>,
    pub events: &'a Events,
    pub finished: &'a mut dyn FnMut(Completion),
}

/// State of a request that has not ended.
pub struct Unfinished {
    prompt_tokens: u32,
    cached_tokens: u32,
    tokens: Vec<u32>,
    logprobs: Option<WantedLogprobs>,
}

impl Unfinished {
    pub fn new(request: &Request) -> Self {
        let likeliest = request.options.as_ref().and_then(|options| options.logprobs);
        Self {
            prompt_tokens: request.prompt.len() as u32,
            cached_tokens: 0,
            tokens: Vec::new(),
            logprobs: likeliest.map(WantedLogprobs::new),
        }
    }
}

impl Run<'_> {
    /// Opens the region at the moment from which the engine is handed requests.
    pub fn begin(&mut self, at: u64) {
        let at = Clock::now().moment(at);
        for (&request, progress) in &self.unfinished {
            self.events.emit_at(at, Fact::RequestQueued { request, prompt_tokens: progress.prompt_tokens });
        }
    }

    fn unfinished(&mut self, request: RequestId) -> Result<&mut Unfinished, Error> {
        self.unfinished.get_mut(&request).ok_or_else(|| never_made(self.engine, request))
    }

    /// Emits the facts of a step with the times that the engine measured.
    pub fn step(&mut self, step: Step) -> Result<(), Error> {
        // Once for each step: the distance between the two readings is its only error.
        let clock = Clock::now();
        let at = clock.moment(step.at);
        for &request in &step.preempted {
            self.events.emit_at(at, Fact::RequestPreempted { request: RequestId(request) });
        }
        // Before tokens: a request's first token counts its prompt without what was found in the cache.
        for place in step.first {
            let request = RequestId(place.id);
            if let Some(scheduled) = place.scheduled {
                self.events.emit_at(clock.moment(scheduled), Fact::RequestScheduled { request });
            }
            if let Some(hit_tokens) = place.cached {
                let progress = self.unfinished(request)?;
                progress.cached_tokens = hit_tokens.min(progress.prompt_tokens);
                let prompt_tokens = progress.prompt_tokens;
                self.events.emit_at(at, Fact::PrefixSearched { request, prompt_tokens, hit_tokens });
            }
        }
        let (mut prefill_tokens, mut decode_tokens) = (0, 0);
        for (request, tokens) in step.tokens {
            let request = RequestId(request);
            let progress = self.unfinished(request)?;
            // A prompt counts where its first token comes: engines do not say in which steps its chunks were computed.
            if progress.tokens.is_empty() && !tokens.is_empty() {
                prefill_tokens += (progress.prompt_tokens - progress.cached_tokens) as usize;
            } else {
                decode_tokens += tokens.len();
            }
            progress.tokens.extend(&tokens);
            for token in tokens {
                self.events.emit_at(at, Fact::TokenGenerated { request, token });
            }
        }
        for logprobs in step.logprobs {
            let id = logprobs.id;
            let progress = self.unfinished(RequestId(id))?;
            let taken = match &mut progress.logprobs {
                Some(wanted) => wanted.take(&progress.tokens, logprobs),
                None => Err(format!("gives log-probabilities of request {id}, which wants none")),
            };
            taken.map_err(|clause| broken(self.engine, &clause))?;
        }
        self.events.emit_at(
            at,
            Fact::StepFinished {
                engine: 0,
                duration: Duration::from_nanos(step.took),
                prefill_tokens,
                decode_tokens,
                running: step.running,
                waiting: step.waiting,
                kv_blocks_used: step.kv_blocks_used,
            },
        );
        Ok(())
    }

    pub fn end(&mut self, RequestEnd { id, at, reason, text, by_token }: RequestEnd) -> Result<(), Error> {
        let request = RequestId(id);
        // Memory holds the tokens of unfinished requests only.
        let ended = self.unfinished.remove(&request).ok_or_else(|| never_made(self.engine, request))?;
        let Unfinished { tokens, logprobs, .. } = ended;
        let output_tokens = tokens.len() as u32;
        let at = Clock::now().moment(at);
        self.events.emit_at(at, Fact::RequestFinished { request, output_tokens, reason });
        let logprobs = logprobs.map(|wanted| {
            let logprobs = wanted.complete(id, &tokens).map_err(|clause| broken(self.engine, &clause))?;
            // As of our own engine: without a token that is no part of the text.
            let answer = &tokens[..tokens.len().saturating_sub(usize::from(by_token))];
            SpelledLogprobs::of(&self.texts, answer, &logprobs)
                .map_err(|error| Error::Inference(Cause::Model(error).into()))
        });
        let logprobs = logprobs.transpose()?;
        let error = (reason == FinishReason::Error).then(|| {
            RequestError::Sentence(format!(
                "{} ended request {id} with an error after {output_tokens} tokens; its own lines in the log say which",
                self.engine
            ))
        });
        (self.finished)(Completion { id: request, tokens, text, logprobs, reason, error });
        Ok(())
    }

    pub fn done(&self) -> Result<(), Error> {
        // Counts are verified against what was asked for; a request without an end would pass as one that was never made.
        match self.unfinished.keys().next() {
            None => Ok(()),
            Some(request) => {
                let clause = format!("says that all is done, and has not answered request {}", request.0);
                Err(broken(self.engine, &clause))
            }
        }
    }
}

/// Breach of the protocol by a driver; `clause` follows the engine's name.
fn broken(engine: &str, clause: &str) -> Error {
    Error::Inference(format!("{engine} {clause}").into())
}

fn never_made(engine: &str, request: RequestId) -> Error {
    broken(engine, &format!("answers request {}, which nobody made", request.0))
}

/// The same moment on the driver's clock and on ours. Both are the monotonic clock, but an `Instant` does not show its number.
struct Clock {
    here: Instant,
    there: Duration,
}

impl Clock {
    fn now() -> Self {
        let there = clock_gettime(ClockId::Monotonic);
        let there = Duration::new(there.tv_sec as u64, there.tv_nsec as u32);
        Self { here: Instant::now(), there }
    }

    /// The moment that the driver calls `nanoseconds`, which is not in the future.
    fn moment(&self, nanoseconds: u64) -> Instant {
        let ago = self.there.saturating_sub(Duration::from_nanos(nanoseconds));
        // An `Instant` has no values before the system's start.
        self.here.checked_sub(ago).unwrap_or(self.here)
    }
}

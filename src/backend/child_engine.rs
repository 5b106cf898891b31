//! Engines of others as backends: a child process runs the engine, its steps told as our facts.
//!
//! The driver is ours, the engine and its detokeniser are its makers', driven as their own offline benchmark drives them. Requests are
//! handed to the driver before the region begins and to the engine within it, which is where those benchmarks draw the line, too.
//! What an engine cannot tell is not made up: there is no roofline, as none reports operations and bytes of its steps. What is
//! particular to one engine stands in a file of its name.

mod child;
mod environment;
mod protocol;
mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

use flashjob_config::{EngineArguments, JobConfig};
use flashjob_event::{Events, Fact, FinishReason, RequestId};
use flashjob_model::TextService;

use self::child::{Child, ChildEnd};
use self::protocol::{DriverCommand, DriverMessage, DriverRequest, Loaded, RequestEnd, Step};
use super::presence::Interpreter;
use super::{Backend, BackendReport, Cause, Completion, EngineReport, Error, Loading, Request, opened};

pub use child::Driver;
pub use environment::command;
pub use settings::refused;

/// Modules that every driver imports.
pub const DRIVER_MODULE: (&str, &str) = ("flashjob_driver", include_str!("child_engine/driver.py"));

/// An engine that runs in a child process: everything that is particular to it.
#[derive(Debug)]
pub struct Product {
    /// Name in sentences.
    pub name: &'static str,
    /// Value of `backend`, Python package and image target.
    pub backend: &'static str,
    /// Program that runs it.
    pub driver: Driver,
    /// The key with arguments of its own, and where their values stand.
    pub arguments_key: &'static str,
    /// Arguments of the user.
    pub arguments: fn(&JobConfig) -> &EngineArguments,
    /// Keys without a counterpart: what comes of them with this engine, and why nothing else can be had.
    pub without_counterpart: &'static [(&'static str, &'static str, &'static str)],
    /// Arguments that flashjob decides, and the remedy.
    pub decided: &'static [(&'static str, &'static str)],
}

/// An engine that is loaded, and the texts of its model.
pub struct ChildEngine {
    product: &'static Product,
    child: Child,
    texts: Arc<TextService>,
    gpus: usize,
    report: BackendReport,
}

impl ChildEngine {
    /// Starts the engine and waits until it is loaded.
    pub fn open(product: &'static Product, interpreter: &Interpreter, loading: &Loading<'_>) -> Result<Self, Error> {
        let &Loading { config, model, tokenizer, texts, events, cancel, .. } = loading;
        let name = product.name;
        // The path would be taken for a name on the Hugging Face Hub, with a complaint about the network.
        if !model.join("config.json").is_file() {
            let reason = format!("{name} takes a directory in Hugging Face layout, and there is no config.json in it");
            return Err(Error::Model(format!("{}: {reason}", model.display()).into()));
        }
        let mut child = Child::start(interpreter.path(), &product.driver).map_err(|source| {
            Error::Unavailable(Cause::Start { engine: name, interpreter: interpreter.path().to_owned(), source }.into())
        })?;
        child.tell(&settings::of(config, (product.arguments)(config), model, tokenizer));
        let loaded = match child.next(cancel) {
            Ok(DriverMessage::Loaded(loaded)) => loaded,
            Ok(DriverMessage::Refused(reason)) => return Err(Error::Unavailable(reason.into())),
            Ok(DriverMessage::Failed(reason)) => {
                return Err(Error::Model(format!("{name} cannot load {}: {reason}", model.display()).into()));
            }
            Ok(other) => return Err(Error::Model(out_of_turn(name, &other).into())),
            Err(ChildEnd::Cancelled) => return Err(Error::Cancelled),
            Err(ChildEnd::Ended(how)) => {
                return Err(Error::Model(format!("{name} {how} (while it loaded {})", model.display()).into()));
            }
        };
        let Loaded { version, parameters, max_model_len, gpus, kv_blocks, block_tokens, engine } = *loaded;
        events.emit(Fact::EngineReady { kv_blocks, block_tokens });
        let texts = opened(texts)?;
        let report = BackendReport {
            backend: product.backend,
            version,
            architecture: texts.facts().architecture.clone(),
            parameters,
            max_model_len,
            other_modalities: None,
            warnings: texts.facts().warnings.clone(),
            engine: EngineReport::Child(Box::new(engine)),
        };
        Ok(Self { product, child, texts, gpus, report })
    }

    /// Has the driver hold `requests` ready.
    fn hand_over(&mut self, requests: &[Request], cancel: &CancellationToken) -> Result<(), Error> {
        let asked =
            requests.iter().map(|request| DriverRequest::new(request, &self.texts.facts().eos_tokens)).collect();
        self.child.tell(&DriverCommand::Take(asked));
        let name = self.product.name;
        match self.listen(cancel)? {
            DriverMessage::Taken(taken) if taken == requests.len() => Ok(()),
            DriverMessage::Taken(taken) => {
                Err(Error::Inference(format!("{name} was given {} requests and took {taken}", requests.len()).into()))
            }
            other => Err(Error::Inference(out_of_turn(name, &other).into())),
        }
    }

    /// The driver's next message; one that ends the run is an error.
    fn listen(&mut self, cancel: &CancellationToken) -> Result<DriverMessage, Error> {
        let name = self.product.name;
        match self.child.next(cancel) {
            Ok(DriverMessage::Failed(reason)) => Err(Error::Inference(format!("{name} gave up: {reason}").into())),
            Ok(DriverMessage::Refused(reason)) => Err(Error::Unavailable(reason.into())),
            Ok(said) => Ok(said),
            Err(ChildEnd::Ended(how)) => Err(Error::Inference(format!("{name} {how}").into())),
            Err(ChildEnd::Cancelled) => {
                // Ended here and not when the backend is dropped: after a signal every tenth of a second counts.
                self.child.end();
                Err(Error::Cancelled)
            }
        }
    }
}

impl Backend for ChildEngine {
    fn report(&self) -> &BackendReport {
        &self.report
    }

    fn gpus(&self) -> usize {
        self.gpus
    }

    fn run(
        &mut self,
        requests: Vec<Request>,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut dyn FnMut(Completion),
    ) -> Result<(), Error> {
        // The driver parses all requests before the clock starts: that is the protocol's cost, and none of the engine's.
        self.hand_over(&requests, cancel)?;
        let unfinished = requests.iter().map(|request| (request.id, Unfinished::new(request.prompt.len()))).collect();
        // Prompts are with the driver now: a second copy of a large dataset would stay for the whole run.
        drop(requests);
        let mut run = Run { engine: self.product.name, unfinished, events, finished };
        self.child.tell(&DriverCommand::Run);
        loop {
            match self.listen(cancel)? {
                DriverMessage::Running(at) => run.begin(at),
                DriverMessage::Step(step) => run.step(step)?,
                DriverMessage::End(end) => run.end(end)?,
                DriverMessage::Done => return run.done(),
                other => return Err(Error::Inference(out_of_turn(self.product.name, &other).into())),
            }
        }
    }
}

/// State of one run, built from the driver's messages.
struct Run<'a> {
    engine: &'static str,
    unfinished: BTreeMap<RequestId, Unfinished>,
    events: &'a Events,
    finished: &'a mut dyn FnMut(Completion),
}

/// State of a request that has not ended.
struct Unfinished {
    prompt_tokens: u32,
    cached_tokens: u32,
    tokens: Vec<u32>,
}

impl Unfinished {
    fn new(prompt: usize) -> Self {
        Self { prompt_tokens: prompt as u32, cached_tokens: 0, tokens: Vec::new() }
    }
}

impl Run<'_> {
    /// Opens the region at the moment from which the engine is handed requests.
    fn begin(&mut self, at: u64) {
        let at = Clock::now().moment(at);
        for (&request, progress) in &self.unfinished {
            self.events.emit_at(at, Fact::RequestQueued { request, prompt_tokens: progress.prompt_tokens });
        }
    }

    fn unfinished(&mut self, request: RequestId) -> Result<&mut Unfinished, Error> {
        let engine = self.engine;
        self.unfinished.get_mut(&request).ok_or_else(|| {
            Error::Inference(format!("{engine} answers request {}, which nobody made", request.0).into())
        })
    }

    /// Emits the facts of a step with the times that the engine measured.
    fn step(&mut self, step: Step) -> Result<(), Error> {
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
        self.events.emit_at(
            at,
            Fact::StepFinished {
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

    fn end(&mut self, RequestEnd { id, at, reason, text }: RequestEnd) -> Result<(), Error> {
        let request = RequestId(id);
        let tokens = std::mem::take(&mut self.unfinished(request)?.tokens);
        // Memory holds the tokens of unfinished requests only.
        self.unfinished.remove(&request);
        let output_tokens = tokens.len() as u32;
        let at = Clock::now().moment(at);
        self.events.emit_at(at, Fact::RequestFinished { request, output_tokens, reason });
        let error = (reason == FinishReason::Error).then(|| {
            format!(
                "{} ended request {id} with an error after {output_tokens} tokens; its own lines in the log say which",
                self.engine
            )
        });
        (self.finished)(Completion { id: request, tokens, text, reason, error });
        Ok(())
    }

    fn done(&self) -> Result<(), Error> {
        // Counts are verified against what was asked for; a request without an end would pass as one that was never made.
        match self.unfinished.keys().next() {
            None => Ok(()),
            Some(request) => {
                let reason =
                    format!("{} says that all is done, and has not answered request {}", self.engine, request.0);
                Err(Error::Inference(reason.into()))
            }
        }
    }
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

fn out_of_turn(engine: &str, said: &DriverMessage) -> String {
    let mut said = format!("{said:?}");
    // A step may hold a thousand requests.
    said.truncate(said.char_indices().nth(200).map_or(said.len(), |(at, _)| at));
    format!("the driver of {engine} says {said} out of turn; this is a bug, please report it")
}

//! vLLM as a backend: a child process that runs vLLM's own engine, its steps told as our facts.
//!
//! The driver (`vllm/driver.py`) is ours, the engine and its detokeniser are vLLM's. Requests are handed to the driver before the
//! region begins and to vLLM within it, which is where vLLM's own benchmark draws the line. What it cannot tell is not
//! made up: there is no roofline, as vLLM does not report operations and bytes of its steps.

mod child;
mod protocol;
mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

use flashjob_event::{Events, Fact, FinishReason, RequestId};
use flashjob_model::TextService;

use self::child::{Child, ChildEnd};
use self::protocol::{DriverCommand, DriverMessage, DriverRequest, Loaded, Step};
use super::presence::Interpreter;
use super::{Backend, BackendReport, Cause, Completion, EngineReport, Error, Loading, Request, opened};

pub use settings::refused;

const DRIVER: &str = include_str!("vllm/driver.py");

/// Environment of the driver: no downloads, no usage statistics, and the engine in the driver's own process, so that both end
/// together.
const VARIABLES: [(&str, &str); 7] = [
    ("HF_HUB_OFFLINE", "1"),
    ("TRANSFORMERS_OFFLINE", "1"),
    ("VLLM_NO_USAGE_STATS", "1"),
    ("DO_NOT_TRACK", "1"),
    ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
    ("VLLM_WORKER_MULTIPROC_METHOD", "spawn"),
    ("VLLM_LOGGING_COLOR", "0"),
];

/// A loaded vLLM, and the texts of its model.
pub struct VllmBackend {
    child: Child,
    texts: Arc<TextService>,
    gpus: usize,
    report: BackendReport,
}

impl VllmBackend {
    /// Starts vLLM and waits until it is loaded.
    pub fn open(interpreter: &Interpreter, loading: &Loading<'_>) -> Result<Self, Error> {
        let &Loading { config, model, tokenizer, texts, events, cancel, .. } = loading;
        // vLLM would take the path for a name on the Hugging Face Hub, and complain about the network.
        if !model.join("config.json").is_file() {
            let reason = "vLLM takes a directory in Hugging Face layout, and there is no config.json in it";
            return Err(Error::Model(format!("{}: {reason}", model.display()).into()));
        }
        let mut child = Child::start(interpreter.path(), DRIVER, &VARIABLES).map_err(|source| {
            Error::Unavailable(Cause::Start { interpreter: interpreter.path().to_owned(), source }.into())
        })?;
        child.tell(&settings::of(config, model, tokenizer));
        let loaded = match child.next(cancel) {
            Ok(DriverMessage::Loaded(loaded)) => loaded,
            Ok(DriverMessage::Refused(reason)) => return Err(Error::Unavailable(reason.into())),
            Ok(DriverMessage::Failed(reason)) => {
                return Err(Error::Model(format!("vLLM cannot load {}: {reason}", model.display()).into()));
            }
            Ok(other) => return Err(Error::Model(out_of_turn(&other).into())),
            Err(ChildEnd::Cancelled) => return Err(Error::Cancelled),
            Err(ChildEnd::Ended(how)) => {
                return Err(Error::Model(format!("vLLM {how} (while it loaded {})", model.display()).into()));
            }
        };
        let Loaded { version, parameters, max_model_len, gpus, kv_blocks, block_tokens, engine } = *loaded;
        events.emit(Fact::EngineReady { kv_blocks, block_tokens });
        let texts = opened(texts)?;
        let architecture = texts.facts().architecture.clone();
        let report = BackendReport {
            backend: "vllm",
            version,
            architecture,
            parameters,
            max_model_len,
            other_modalities: None,
            warnings: texts.facts().warnings.clone(),
            engine: EngineReport::Vllm(Box::new(engine)),
        };
        Ok(Self { child, texts, gpus, report })
    }

    /// Has the driver hold `requests` ready.
    fn hand_over(&mut self, requests: &[Request], cancel: &CancellationToken) -> Result<(), Error> {
        let asked =
            requests.iter().map(|request| DriverRequest::new(request, &self.texts.facts().eos_tokens)).collect();
        self.child.tell(&DriverCommand::Take(asked));
        match self.listen(cancel)? {
            DriverMessage::Taken(taken) if taken == requests.len() => Ok(()),
            DriverMessage::Taken(taken) => {
                Err(Error::Inference(format!("vLLM was given {} requests and took {taken}", requests.len()).into()))
            }
            other => Err(Error::Inference(out_of_turn(&other).into())),
        }
    }

    /// The driver's next message; one that ends the run is an error.
    fn listen(&mut self, cancel: &CancellationToken) -> Result<DriverMessage, Error> {
        match self.child.next(cancel) {
            Ok(DriverMessage::Failed(reason)) => Err(Error::Inference(format!("vLLM gave up: {reason}").into())),
            Ok(said) => Ok(said),
            Err(ChildEnd::Ended(how)) => Err(Error::Inference(format!("vLLM {how}").into())),
            Err(ChildEnd::Cancelled) => {
                // Ended here and not when the backend is dropped: after a signal every tenth of a second counts.
                self.child.end();
                Err(Error::Cancelled)
            }
        }
    }
}

impl Backend for VllmBackend {
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
        let mut run = Run { prompts: BTreeMap::new(), tokens: BTreeMap::new(), events, finished };
        for request in &requests {
            let (id, prompt_tokens) = (request.id, request.prompt.len() as u32);
            run.prompts.insert(id, prompt_tokens);
            events.emit(Fact::RequestQueued { request: id, prompt_tokens });
        }
        self.child.tell(&DriverCommand::Run);
        loop {
            match self.listen(cancel)? {
                DriverMessage::Step(step) => run.state(step)?,
                DriverMessage::Done => return Ok(()),
                other => return Err(Error::Inference(out_of_turn(&other).into())),
            }
        }
    }
}

/// State of one run, built from the driver's messages.
struct Run<'a> {
    /// Lengths of all prompts in tokens.
    prompts: BTreeMap<RequestId, u32>,
    /// Tokens of unfinished requests.
    tokens: BTreeMap<RequestId, Vec<u32>>,
    events: &'a Events,
    finished: &'a mut dyn FnMut(Completion),
}

impl Run<'_> {
    /// Emits the facts of a step with the times that the driver measured.
    fn state(&mut self, step: Step) -> Result<(), Error> {
        // Once for each step: the distance between the two readings is its only error.
        let clock = Clock::now();
        let at = clock.moment(step.at);
        for &request in &step.preempted {
            self.events.emit_at(at, Fact::RequestPreempted { request: RequestId(request) });
        }
        let (mut prefill_tokens, mut decode_tokens) = (0, 0);
        for progress in step.requests {
            let request = RequestId(progress.id);
            let Some(&prompt_tokens) = self.prompts.get(&request) else {
                return Err(Error::Inference(format!("vLLM answers request {}, which nobody made", request.0).into()));
            };
            if let Some(scheduled) = progress.scheduled {
                self.events.emit_at(clock.moment(scheduled), Fact::RequestScheduled { request });
            }
            if let Some(hit_tokens) = progress.cached {
                self.events.emit_at(at, Fact::PrefixSearched { request, prompt_tokens, hit_tokens });
            }
            let tokens = self.tokens.entry(request).or_default();
            // A prompt counts where its first token comes: vLLM does not say in which steps its chunks were computed.
            if tokens.is_empty() && !progress.new.is_empty() {
                prefill_tokens += (prompt_tokens - progress.cached.unwrap_or(0).min(prompt_tokens)) as usize;
            } else {
                decode_tokens += progress.new.len();
            }
            for &token in &progress.new {
                self.events.emit_at(at, Fact::TokenGenerated { request, token });
            }
            tokens.extend(progress.new);
            if let Some((reason, text)) = progress.end {
                self.finish(at, request, reason, text);
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

    fn finish(&mut self, at: Instant, request: RequestId, reason: FinishReason, text: String) {
        // Removed, so that memory holds the tokens of unfinished requests only.
        let tokens = self.tokens.remove(&request).unwrap_or_default();
        let output_tokens = tokens.len() as u32;
        self.events.emit_at(at, Fact::RequestFinished { request, output_tokens, reason });
        let error = (reason == FinishReason::Error).then(|| {
            format!(
                "vLLM ended request {} with an error after {output_tokens} tokens; its own lines in the log say which",
                request.0
            )
        });
        (self.finished)(Completion { id: request, tokens, text, reason, error });
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

fn out_of_turn(said: &DriverMessage) -> String {
    let mut said = format!("{said:?}");
    // A step may hold the texts of a thousand requests.
    said.truncate(said.char_indices().nth(200).map_or(said.len(), |(at, _)| at));
    format!("the driver of vLLM says {said} out of turn; this is a bug, please report it")
}

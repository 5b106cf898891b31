//! The engines a job can run, behind one trait.
//!
//! A backend turns requests into events and completions. It does not know where results go, and it is never
//! replaced by another one unseen: what was asked for runs, or the job ends with a sentence that says why not.

mod candle;
mod child_engine;
mod engine_report;
mod error;
mod gpus;
mod presence;
mod sglang;
mod source;
mod spelled_logprobs;
mod text_options;
mod vllm;

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use flashjob_config::{BackendKind, EngineConfig, JobConfig, Sampling, SamplingOptions};
use flashjob_event::{Events, FinishReason, RequestId};
use flashjob_model::{Files, SharedTexts, TextService};

use child_engine::ChildEngine;

pub use engine_report::{ChildEngineReport, EngineReport};
pub use error::{Cause, Error, RequestError};
pub use gpus::{show_phase, watch as watch_gpus};
pub use presence::{Found, Interpreter, check};
pub use source::{NextRequest, RequestSource};
pub use spelled_logprobs::SpelledLogprobs;
pub use text_options::{Guided, Stop, TextOptions};

pub use flashjob_cluster::Rendezvous;
pub use flashjob_engine::{Orderable, WaitingRequests};

/// One prompt to continue.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of the request in the workload.
    pub id: RequestId,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Tokens to generate; fewer only where a stop token may end it, or an error that is its own.
    pub max_tokens: usize,
    /// The model's end-of-sequence tokens are treated as any other.
    pub ignore_eos: bool,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Options beyond those, of the requests that have any.
    pub options: Option<Arc<SamplingOptions>>,
    /// Number among the answers to its line, which have the same prompt.
    pub choice: u32,
    /// Decides every random choice of our own engine, with a token's position and, where it is the job's, with `id`.
    pub seed: Seed,
    /// Options of its text, where it has any.
    pub text: Option<Arc<TextOptions>>,
}

impl Request {
    /// Returns whether a token or its text may end it before it has all that it asks for.
    pub fn may_stop(&self) -> bool {
        !self.ignore_eos || !self.stop_token_ids().is_empty() || self.text.is_some()
    }

    /// Tokens that end it beside those of the model.
    pub fn stop_token_ids(&self) -> &[u32] {
        self.options.as_ref().map_or(&[], |options| &options.stop_token_ids)
    }
}

/// Source of a request's random choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// The seed of the job, which all its requests share.
    Job(u64),
    /// A seed that the user set for this request.
    Request(u64),
}

impl Seed {
    /// The number that the user set for this request.
    pub fn of_request(self) -> Option<u64> {
        match self {
            Seed::Job(_) => None,
            Seed::Request(seed) => Some(seed),
        }
    }
}

/// Outcome of a request.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Number of the request.
    pub id: RequestId,
    /// Token ids, without the prompt.
    pub tokens: Vec<u32>,
    /// The same as text, special tokens left out.
    pub text: String,
    /// Log-probabilities of the tokens of the text, where they were asked for.
    pub logprobs: Option<Vec<SpelledLogprobs>>,
    /// Reason for its end.
    pub reason: FinishReason,
    /// The fault and its remedy: with [`FinishReason::Error`], and only then.
    pub error: Option<RequestError>,
}

/// Report of a loaded backend on itself, for the log and the result.
#[derive(Clone, Debug, Serialize)]
pub struct BackendReport {
    /// `candle`, `vllm` or `sglang`.
    pub backend: &'static str,
    /// The engine's version.
    pub version: String,
    /// Model architecture as the checkpoint names it.
    pub architecture: String,
    /// Weights counted once, a tied head not twice; `None` where the engine cannot tell.
    pub parameters: Option<u64>,
    /// Longest prompt plus output that it was set up for.
    pub max_model_len: usize,
    /// Reason for taking texts alone, of a checkpoint that was made for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_modalities: Option<&'static str>,
    /// Harmless faults of the model's files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Everything that only this engine has: device, dtype, kernels, blocks.
    pub engine: EngineReport,
}

/// An engine that is loaded and ready. Blocking: call it from a thread that may wait.
pub trait Backend: Send {
    /// Report on what is loaded.
    fn report(&self) -> &BackendReport;

    /// Number of GPUs that it computes on: the first ones of those that this process may use.
    fn gpus(&self) -> usize {
        0
    }

    /// Takes the limits of scheduling from `config`, the rest of which is what was loaded: of our own engine, which needs no new
    /// weights for them. An engine that cannot is loaded again by those who ask.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where it cannot.
    fn reschedule(&mut self, _config: &EngineConfig) -> Result<(), Error> {
        Err(Error::Unavailable("this engine takes other limits of scheduling only when it starts".to_owned().into()))
    }

    /// Measures once more, after a run, what the machine can do, where that was measured before it; what comes of it is stated in
    /// `events`.
    fn measure_limits_again(&mut self, _events: &Events) {}

    /// Runs all `requests` and hands each completion, text included, to `finished`, on any thread: also that of a request which ends
    /// with an error of its own. What is held of a stream of requests is limited, whatever its length.
    ///
    /// # Errors
    /// [`Error::Inference`] when a step fails, [`Error::Cancelled`] when `cancel` is triggered.
    fn run(
        &mut self,
        requests: &mut dyn RequestSource,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut (dyn FnMut(Completion) + Send),
    ) -> Result<(), Error>;

    /// As [`Backend::run`], before anything is measured: of several engines that share requests each gets its part in turn, so that all of
    /// them have computed the same.
    ///
    /// # Errors
    /// As there.
    fn warm_up(
        &mut self,
        requests: Vec<Request>,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut (dyn FnMut(Completion) + Send),
    ) -> Result<(), Error> {
        self.run(&mut requests.into_iter(), events, cancel, finished)
    }
}

/// The ranks of a node that another node leads, loaded and ready. Blocking: call it from a thread that may wait.
pub trait Worker: Send {
    /// Report on what runs here.
    fn report(&self) -> &BackendReport;

    /// Computes the leader's steps, to the end of the job.
    ///
    /// # Errors
    /// [`Error::Ended`] where the leader says that the job failed, [`Error::Inference`] where it is gone without a word.
    fn follow(self: Box<Self>, cancel: &CancellationToken) -> Result<(), Error>;
}

/// Everything that loading takes.
pub struct Loading<'a> {
    /// Configuration of the job.
    pub config: &'a JobConfig,
    /// Meeting point of the nodes that share the model, where there are several.
    pub rendezvous: Option<&'a Rendezvous>,
    /// Files that hold weights: our own engine opens them so, another one by their paths.
    pub files: &'a dyn Files,
    /// Path of the model.
    pub model: &'a Path,
    /// Path of the tokenizer.
    pub tokenizer: &'a Path,
    /// Texts of the model, which are not waited for before weights are loaded.
    pub texts: &'a SharedTexts,
    /// The stream of facts.
    pub events: &'a Events,
    /// Cancellation of the job.
    pub cancel: &'a CancellationToken,
}

/// Loads a model into the engine that [`check`] has found.
///
/// # Errors
/// [`Error::Unavailable`] for what this image or machine lacks, [`Error::Model`] for files, [`Error::Cancelled`].
pub fn open(found: Found, loading: &Loading<'_>) -> Result<Box<dyn Backend>, Error> {
    match found {
        Found::Candle(placement) => Ok(Box::new(candle::CandleBackend::open(placement, loading)?)),
        Found::Vllm(interpreter) => Ok(Box::new(ChildEngine::open(&vllm::VLLM, &interpreter, loading)?)),
        Found::Sglang(interpreter) => Ok(Box::new(ChildEngine::open(&sglang::SGLANG, &interpreter, loading)?)),
    }
}

/// The first of `options` that the engine `backend` does not have or takes otherwise, and the reason.
pub fn unsupported_option(backend: BackendKind, options: &SamplingOptions) -> Option<(&'static str, &'static str)> {
    match backend {
        BackendKind::Candle => None,
        BackendKind::Sglang if options.repetition_penalty != 1.0 => {
            Some(("repetition_penalty", "SGLang leaves the prompt out of account"))
        }
        BackendKind::Sglang if options.logprobs.is_some() && options.changes_logits() => Some((
            "logprobs",
            "SGLang gives them after `min_tokens`, `logit_bias` or penalties have changed the logits",
        )),
        BackendKind::Vllm | BackendKind::Sglang => None,
    }
}

/// Loads the ranks of this node, which another node leads, into the engine that [`check`] has found.
///
/// # Errors
/// As [`open`], [`Error::Unavailable`] for an engine that shares no model with other nodes, and [`Error::Ended`].
pub fn open_worker(found: Found, loading: &Loading<'_>) -> Result<Box<dyn Worker>, Error> {
    match found {
        Found::Candle(placement) => Ok(Box::new(candle::CandleWorker::open(placement, loading)?)),
        Found::Vllm(_) | Found::Sglang(_) => {
            Err(Error::Unavailable("only backend=candle shares a model with other nodes".to_owned().into()))
        }
    }
}

/// The texts of a model that is loaded.
fn opened(texts: &SharedTexts) -> Result<Arc<TextService>, Error> {
    texts.get().map_err(|error| Error::Model(Cause::Texts(error).into()))
}

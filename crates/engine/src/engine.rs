//! A loaded model.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::device::Device;
use crate::device::platform::Platform;
use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use crate::forward::replay::ReplaySizes;
use crate::parallel::executor::Executor;
use crate::report::CandleReport;
use crate::schedule::limits::EngineLimits;
use crate::start::roofline::{CpuNodes, state};
use crate::start::step_size::LimitReasons;
use flashjob_config::Schedule;
use flashjob_cpu::TokenLogprobs;
use flashjob_event::{Events, RequestId};

/// Receives a request, the position of the token that is about to be chosen, and the logits it is chosen from.
pub type LogitsWatcher = Box<dyn FnMut(RequestId, usize, &[f32]) + Send>;

/// A loaded model that serves requests, one run at a time.
pub struct Engine {
    pub(crate) report: CandleReport,
    pub(crate) limits: EngineLimits,
    /// Bounds of the steps that another node may ask for: buffers are as large, also where the cache holds less.
    pub(crate) bounds: EngineLimits,
    /// Causes of the limits that were loaded.
    pub(crate) loaded_reasons: LimitReasons,
    pub(crate) executor: Executor,
    /// Lent to the ranks for as long as they compute it.
    pub(crate) batch: Arc<ForwardBatch>,
    /// Sizes of recorded steps, where steps of decoding are recorded and replayed.
    pub(crate) replay: Option<ReplaySizes>,
    /// Tokens that the last step chose; reused.
    pub(crate) chosen: Vec<u32>,
    /// Log-probabilities that the last step was asked for, by row; reused.
    pub(crate) logprobs: Vec<(usize, TokenLogprobs)>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) watcher: Option<LogitsWatcher>,
    /// No step is queued before the tokens of the one before it are read.
    pub(crate) reads_at_once: bool,
    pub(crate) platform: &'static dyn Platform,
    /// Processors of each node, where limits were measured.
    pub(crate) measured_cpus: Option<CpuNodes>,
}

impl Engine {
    /// Everything that was decided while loading.
    pub fn report(&self) -> &CandleReport {
        &self.report
    }

    /// Takes other limits of scheduling for the runs that follow, within those that buffers were made for. `None` is what was loaded.
    ///
    /// # Errors
    /// [`Error::Setting`] for a limit above what was loaded; everything stays as it was.
    pub fn reschedule(
        &mut self,
        max_num_seqs: Option<usize>,
        max_num_batched_tokens: Option<usize>,
        prefix_caching: bool,
        schedule: Schedule,
    ) -> Result<(), Error> {
        let within = |key: &str, asked: Option<usize>, loaded: usize| match asked {
            Some(asked) if asked > loaded => Err(Error::Setting(format!(
                "{key}={asked} is above the {loaded} that the model was loaded with; load it again for more"
            ))),
            asked => Ok(asked.unwrap_or(loaded)),
        };
        let asked = [max_num_seqs, max_num_batched_tokens];
        let max_num_seqs = within("max-num-seqs", max_num_seqs, self.bounds.max_num_seqs)?;
        let max_num_batched_tokens =
            within("max-num-batched-tokens", max_num_batched_tokens, self.bounds.max_num_batched_tokens)?;
        self.limits = EngineLimits { max_num_seqs, max_num_batched_tokens, ..self.limits };
        let limit_reasons = self.loaded_reasons.of_asked(asked.map(|asked| asked.is_some()));
        let report = self.report.clone();
        self.report =
            CandleReport { max_num_seqs, max_num_batched_tokens, limit_reasons, prefix_caching, schedule, ..report };
        Ok(())
    }

    /// Computes the next step of the node that leads.
    ///
    /// # Errors
    /// [`Error::Ended`] where there is none any more, and [`Error::Compute`].
    pub fn follow(&mut self, cancel: &CancellationToken) -> Result<(), Error> {
        self.executor.follow(&mut self.batch, &self.bounds, cancel)
    }

    /// Shows all logits from which tokens are chosen to `watcher`, at the cost of copying them: for tests and
    /// diagnosis. `None` ends it.
    pub fn watch_logits(&mut self, watcher: Option<LogitsWatcher>) {
        self.watcher = watcher;
    }

    /// Has the tokens of each step read before the next one is decided, on any device: for tests, and to see what running ahead gives.
    pub fn read_tokens_at_once(&mut self, at_once: bool) {
        self.reads_at_once = at_once;
    }

    /// Measures the limits again, in less than a second, where they were measured on processors while loading; they are stated in
    /// `events`. Where there is too little memory left for it, what was measured first stands.
    pub fn measure_limits_again(&self, events: &Events) {
        // A second figure may only help: whatever else ran during the first measurement has made it too low.
        if let Some(limits) = self.measured_cpus.and_then(|cpus| self.platform.limits_again(cpus)) {
            state(limits, events);
        }
    }
}

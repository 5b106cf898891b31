//! A workload and a backend become a measurement: timings, percentiles, exact counts.
//!
//! The measured region runs from handing over the first request to the text of the last one, after load and
//! warm-up. This room does not know where results go.

mod distribution;
mod measurement;
mod recorder;
mod roofline;
mod workload;

use tokio_util::sync::CancellationToken;

pub use distribution::Distribution;
pub use measurement::{Latencies, Measurement, PrefixCacheHits, RequestTiming};
pub use recorder::Recorder;
pub use roofline::{MachineLimits, Roofline};
pub use workload::{Prompts, prepare};

use crate::backend::{self, Backend, Completion, Request};
use crate::event::{Events, Fact, Phase};

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The workload cannot be made: an unreadable dataset, a prompt that is too long.
    #[error("{0}")]
    Workload(String),
    /// The backend failed or was stopped.
    #[error(transparent)]
    Backend(#[from] backend::Error),
    /// The run finished, but its counts are not exactly those that were asked for.
    #[error("the run is not valid: {0}; nothing is reported from it")]
    Counts(String),
}

/// Runs the warm-up and then the measured region. `recorder` must be among the observers of `events`; what it
/// has seen so far is a partial measurement when this fails.
///
/// # Errors
/// What the backend says, or counts that are not exact.
pub fn run(
    backend: &mut dyn Backend,
    prompts: Prompts,
    events: &Events,
    recorder: &Recorder,
    cancel: &CancellationToken,
) -> Result<(Measurement, Vec<Completion>), Error> {
    let Prompts { warm_up, measured, exact_output } = prompts;
    events.emit(Fact::PhaseStarted(Phase::WarmUp));
    if !warm_up.is_empty() {
        backend.run(warm_up, events, cancel, &mut |_| {})?;
    }
    let expected: Vec<Request> = measured.clone();
    let mut completions = Vec::with_capacity(measured.len());
    events.emit(Fact::PhaseStarted(Phase::Measure));
    backend.run(measured, events, cancel, &mut |completion| completions.push(completion))?;
    completions.sort_by_key(|completion| completion.id);
    let measurement = recorder.measurement();
    measurement.verify(&expected, &completions, exact_output).map_err(Error::Counts)?;
    Ok((measurement, completions))
}

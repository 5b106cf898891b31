//! Requests and a backend become a measurement: timings, percentiles, exact counts.
//!
//! The measured region runs from handing over the first request to the text of the last one, after load and
//! warm-up. This room does not know where results go.

mod measurement;
mod recorder;
mod roofline;

use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

pub use measurement::{Latencies, Measurement, PrefixCacheHits};
pub use recorder::Recorder;
pub use roofline::{BoundFigures, LimitFigures, MachineLimits, Roofline, RooflineFigures};

use flashjob_event::{Events, Fact, Phase};

use crate::backend::{self, Backend, Completion, Request};
use crate::prepare::Prompts;

/// Reason for which there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backend failed or was stopped.
    #[error(transparent)]
    Backend(#[from] backend::Error),
    /// The run finished, but its counts are not exactly those that were asked for.
    #[error("the run is not valid: {0}; nothing is reported from it")]
    Counts(String),
    /// A request ended with an error, and the run is about exact counts.
    #[error("{0}")]
    Request(String),
    /// Every request ended with an error.
    #[error("none of the {requests} requests could be answered; the first ended so: {first}")]
    NoAnswers {
        /// Number of requests.
        requests: usize,
        /// The error of the first.
        first: String,
    },
}

/// Runs the warm-up and then the measured region; `energy_joules` is what its devices have taken so far, where they say.
/// `recorder` must be among the observers of `events`; what it
/// has seen so far is a partial measurement when this fails, and `completions` what was complete until then; after
/// a run to the end they are there in the order of the requests. A request that ends with an error is one of them, unless the
/// prompts are about exact counts: that run is over at once.
///
/// # Errors
/// Errors of the backend, counts that are not exact, or no request that was answered.
pub fn run(
    backend: &mut dyn Backend,
    prompts: Prompts,
    events: &Events,
    recorder: &Recorder,
    cancel: &CancellationToken,
    completions: &Mutex<Vec<Completion>>,
    energy_joules: &dyn Fn() -> Option<f64>,
) -> Result<Measurement, Error> {
    let Prompts { warm_up, measured, exact } = prompts;
    let mut run = |requests, finished: &mut dyn FnMut(Completion)| match exact {
        true => run_exactly(backend, requests, events, cancel, finished),
        false => Ok(backend.run(requests, events, cancel, finished)?),
    };
    events.emit(Fact::PhaseStarted(Phase::WarmUp));
    if !warm_up.is_empty() {
        // Their completions are dropped, and the recorder ignores all that comes before `Phase::Measure`.
        run(warm_up, &mut |_| {})?;
    }
    // The backend takes the requests, and their counts are verified against the originals.
    let expected: Vec<Request> = measured.clone();
    // A panic does not spoil the list: each push adds a whole completion.
    let lock = || completions.lock().unwrap_or_else(PoisonError::into_inner);
    lock().reserve(measured.len());
    // Counters of GPUs run all the time: the difference over the region is its energy.
    let energy_before = energy_joules();
    events.emit(Fact::PhaseStarted(Phase::Measure));
    run(measured, &mut |completion| lock().push(completion))?;
    let energy_after = energy_joules();
    // A second look: where other work held the machine up before the region, the limits would be too low.
    backend.measure_limits_again(events);
    let mut completions = lock();
    completions.sort_by_key(|completion| completion.id);
    let mut measurement = recorder.measurement();
    measurement.energy_joules = energy_before.zip(energy_after).map(|(before, after)| after - before);
    if let Err(deviation) = measurement.verify(&expected, &completions) {
        // Answers of a run whose counts are wrong may be wrong themselves. None of them is written.
        completions.clear();
        return Err(Error::Counts(deviation));
    }
    let errors = completions.iter().filter_map(|completion| completion.error.as_ref());
    if let (Some(first), true) = (errors.clone().next(), errors.count() == expected.len()) {
        return Err(Error::NoAnswers { requests: expected.len(), first: first.clone() });
    }
    Ok(measurement)
}

/// Runs `requests` until one of them ends with an error.
fn run_exactly(
    backend: &mut dyn Backend,
    requests: Vec<Request>,
    events: &Events,
    cancel: &CancellationToken,
    finished: &mut dyn FnMut(Completion),
) -> Result<(), Error> {
    let stop = cancel.child_token();
    let mut failed = None;
    let outcome = backend.run(requests, events, &stop, &mut |completion| {
        if let (None, Some(error)) = (&failed, &completion.error) {
            failed = Some(error.clone());
            stop.cancel();
        }
        finished(completion);
    });
    // The error may have come with the last token of the last request, when the backend looks at `stop` no more.
    match failed {
        Some(error) => Err(Error::Request(error)),
        None => Ok(outcome?),
    }
}

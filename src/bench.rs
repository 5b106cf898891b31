//! Requests and a backend become a measurement: timings, percentiles, exact counts.
//!
//! The measured region runs from handing over the first request to the text of the last one, after load and
//! warm-up. Prompts that measure are all ready before it; those of a batch are made within it. This room does not know where results go.

mod accuracy;
mod adequacy;
mod batch;
mod expectation;
mod measurement;
mod occupancy;
mod recorder;
mod repeats;
mod roofline;
mod step_times;
mod warm_up;

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

pub use accuracy::Accuracy;
pub use adequacy::warnings;
pub use batch::answer;
pub use measurement::{Latencies, Measurement, PercentilesOf, PrefixCacheHits};
pub use occupancy::SteadyWindow;
pub use recorder::{MOST_TIMINGS_OF_A_BATCH, Recorder};
pub use roofline::{BoundFigures, LimitFigures, MachineLimits, Roofline, RooflineFigures};
pub use step_times::StepTimes;
pub use warm_up::WarmUpReport;

use flashjob_config::{Repeats, WarmUp};
use flashjob_event::{Events, Fact, Phase};
use flashjob_results::StoppedBy;

use crate::backend::{self, Backend, Completion, Request};
use crate::prepare::{self, Entry, Prompts};

/// Reason for which there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backend failed or was stopped.
    #[error(transparent)]
    Backend(#[from] backend::Error),
    /// Prompts of a further region, or of the warm-up, cannot be made.
    #[error(transparent)]
    Prompts(prepare::Error),
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

/// Everything that observes a run, and what ends it.
pub struct Watch<'a> {
    /// The stream of facts.
    pub events: &'a Events,
    /// Recorder of the measured region; among the observers of `events`.
    pub recorder: &'a Recorder,
    /// Step times of the warm-up; among the observers of `events`.
    pub step_times: &'a StepTimes,
    /// Energy that the devices have taken so far, in joules, where they say.
    pub energy_joules: &'a dyn Fn() -> Option<f64>,
    /// Takes each entry of a batch as it is handed to the backend, or was refused.
    pub entered: &'a (dyn Fn(Entry) + Sync),
    /// Takes each completion of the first region as it comes.
    pub completed: &'a (dyn Fn(&Completion) + Sync),
    /// Cancellation of the job.
    pub cancel: &'a CancellationToken,
}

/// One measured region of several.
#[derive(Clone, Debug)]
pub struct MeasuredRegion {
    /// Seed of its prompts and of its sampling.
    pub seed: u64,
    /// Figures of this region.
    pub measurement: Measurement,
}

/// Everything that a run has so far; shared with the thread that runs, as one that panics or is left behind returns nothing.
#[derive(Default)]
pub struct RunProgress(Mutex<Achieved>);

/// Results of a run, as far as it has come.
#[derive(Clone, Debug, Default)]
pub struct Achieved {
    /// Course of an automatic warm-up.
    pub warm_up: Option<WarmUpReport>,
    /// Completions of the first region, in the order of its requests once it has ended; none of a batch, whose answers are given away.
    pub completions: Vec<Completion>,
    /// Regions that ran to their end.
    pub regions: Vec<MeasuredRegion>,
    /// Reason why no further region followed.
    pub stopped_by: Option<StoppedBy>,
}

impl RunProgress {
    // A panic does not spoil it: each note is whole.
    fn lock(&self) -> MutexGuard<'_, Achieved> {
        self.0.lock()
    }

    /// Tells that there are as many regions as `repeats` asks for, and notes the reason.
    pub fn is_done(&self, repeats: Repeats) -> bool {
        let mut achieved = self.lock();
        let rates: Vec<f64> =
            achieved.regions.iter().map(|region| region.measurement.output_tokens_per_second()).collect();
        achieved.stopped_by = repeats::stopped_by(repeats, &rates);
        achieved.stopped_by.is_some()
    }

    /// Takes out what there is.
    pub fn take(&self) -> Achieved {
        std::mem::take(&mut self.lock())
    }
}

/// Warms up, and then measures regions until there are as many as `repeats` asks for. What has been achieved stands in `progress`,
/// also where this fails; the recorder has a partial measurement of the region that was not finished. A request that ends with an
/// error is one of the completions, unless the prompts are about exact counts: that run is over at once.
///
/// # Errors
/// Errors of the backend, counts that are not exact, or no request that was answered.
pub fn run(
    backend: &mut dyn Backend,
    prompts: &Prompts,
    how: WarmUp,
    repeats: Repeats,
    watch: &Watch<'_>,
    progress: &RunProgress,
) -> Result<(), Error> {
    warm_up(backend, prompts, how, watch, progress)?;
    while !progress.is_done(repeats) {
        region(backend, prompts, watch, progress)?;
    }
    Ok(())
}

/// Warms up before the first region of `progress`.
///
/// # Errors
/// As [`run`].
pub fn warm_up(
    backend: &mut dyn Backend,
    prompts: &Prompts,
    how: WarmUp,
    watch: &Watch<'_>,
    progress: &RunProgress,
) -> Result<(), Error> {
    watch.events.emit(Fact::PhaseStarted(Phase::WarmUp));
    let report = warm_up::warm_up(backend, prompts, how, watch)?;
    progress.lock().warm_up = report;
    Ok(())
}

/// Measures the next region of `progress`.
///
/// # Errors
/// As [`run`].
pub fn region(
    backend: &mut dyn Backend,
    prompts: &Prompts,
    watch: &Watch<'_>,
    progress: &RunProgress,
) -> Result<(), Error> {
    let number = progress.lock().regions.len();
    let requests = prompts.region(number).map_err(Error::Prompts)?;
    // The backend takes the requests, and their counts are verified against the originals.
    let expected: Vec<Request> = requests.clone();
    // Answers of the first region are those that the job gives; of others they are needed for the check alone.
    let mut others = Vec::new();
    let mut keep = |completion| match number {
        0 => {
            (watch.completed)(&completion);
            progress.lock().completions.push(completion);
        }
        _ => others.push(completion),
    };
    // Counters of GPUs run all the time: the difference over the region is its energy.
    let energy_before = (watch.energy_joules)();
    watch.events.emit(Fact::PhaseStarted(Phase::Measure));
    let run = |stop: &CancellationToken, finished: &mut (dyn FnMut(Completion) + Send)| {
        backend.run(&mut requests.into_iter(), watch.events, stop, finished)
    };
    until_an_error(prompts.exact, watch.cancel, &mut keep, run)?;
    let energy_after = (watch.energy_joules)();
    // A second look: where other work held the machine up before the region, the limits would be too low.
    backend.measure_limits_again(watch.events);
    let mut achieved = progress.lock();
    let Achieved { completions, regions, .. } = &mut *achieved;
    let completions = if number == 0 { completions } else { &mut others };
    completions.sort_by_key(|completion| completion.id);
    let mut measurement = watch.recorder.measurement();
    measurement.energy_joules = energy_before.zip(energy_after).map(|(before, after)| after - before);
    measurement.requested_output_tokens = expected.iter().map(|request| request.max_tokens as u64).sum();
    if let Err(deviation) = measurement.verify(&expected, completions) {
        // Answers of a run whose counts are wrong may be wrong themselves. None of them is written.
        completions.clear();
        return Err(Error::Counts(deviation));
    }
    let errors = completions.iter().filter_map(|completion| completion.error.as_ref());
    if let (Some(first), true) = (errors.clone().next(), errors.count() == expected.len()) {
        return Err(Error::NoAnswers { requests: expected.len(), first: first.to_string() });
    }
    regions.push(MeasuredRegion { seed: prompts.seed(number), measurement });
    Ok(())
}

/// Has `run` run requests, until it is told to stop; where they are about exact counts, that is when one of them ends with an error.
fn until_an_error(
    exact: bool,
    cancel: &CancellationToken,
    finished: &mut (dyn FnMut(Completion) + Send),
    run: impl FnOnce(&CancellationToken, &mut (dyn FnMut(Completion) + Send)) -> Result<(), backend::Error>,
) -> Result<(), Error> {
    if !exact {
        return Ok(run(cancel, finished)?);
    }
    let stop = cancel.child_token();
    let mut failed = None;
    let outcome = run(&stop, &mut |completion| {
        if let (None, Some(error)) = (&failed, &completion.error) {
            failed = Some(error.to_string());
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

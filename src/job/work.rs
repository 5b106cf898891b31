//! The work itself, in phases, each with the exit code that its failure means.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use flashjob_config::{JobConfig, ModelPath};
use flashjob_event::{Events, Fact, Phase, RequestId};
use flashjob_mount::{self as mount, Mounted, Mounter};
use flashjob_results::InputReport;

use super::Exit;
use super::batch::{self, AnswerUploads, Batch, OpenBatch};
use super::context::{Context, Observability};
use super::dataset_log::{FailedLines, SkippedLines};
use super::exit::{self, Failure};
use super::faults;
use super::files::MountedFiles;
use super::load::{self, Ready, Sources};
use super::locate::locate;
use super::run::blocking;
use super::signals::Signals;
use super::step_watch::StepLimit;
use super::tracking::Tracking;
use super::worker;
use crate::backend::{self, BackendReport, RequestError};
use crate::bench::{self, Accuracy, Achieved, RunProgress, Watch};
use crate::prepare::{self, Entry, EntryStream, Place, Prepared};

/// Longest time that a forward pass or a tensor may take to notice a signal.
pub(super) const STEP_PATIENCE: Duration = Duration::from_millis(1500);

/// Skipped inputs, and failed requests, that are reported one by one; the rest is counted.
pub(super) const REPORTED: usize = 20;

/// Findings and measurements so far. They survive the failure of a later phase.
#[derive(Default)]
pub struct Work {
    /// Report on each mounted input.
    pub inputs: Vec<InputReport>,
    /// Report of the backend, once it is loaded.
    pub backend: Option<BackendReport>,
    /// Regions that ran to their end, and completions, also of a run that did not; a partial measurement is with the recorder.
    pub achieved: Achieved,
    /// Correct answers, where the dataset has any.
    pub accuracy: Option<Accuracy>,
    /// Entries of the dataset, where prompts that measure come from one.
    pub entries: Vec<Entry>,
    /// The batch, where it is one.
    pub batch: Option<Arc<Batch>>,
    /// Uploads of its answers, where there is an output bucket.
    pub uploads: Option<AnswerUploads>,
    mounts: Vec<Mounted>,
}

impl Work {
    /// Takes every mount down.
    pub fn unmount(&mut self) {
        for mounted in self.mounts.drain(..) {
            let location = mounted.location.clone();
            if let Err(error) = mounted.unmount() {
                tracing::warn!(location = %location.display(), %error, "unmounting failed");
            }
        }
    }

    /// Everything in the dataset that was left out, and why.
    pub fn skipped(&self) -> impl Iterator<Item = (&Place, &str)> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Skipped { place, reason, .. } => Some((place, reason.as_str())),
            Entry::Asked { .. } => None,
        })
    }

    /// Number of entries that were left out.
    pub fn skipped_inputs(&self) -> usize {
        self.batch.as_ref().map_or_else(|| self.skipped().count(), |batch| batch.skipped())
    }

    /// The files of all mounts, read from their block maps.
    pub(super) fn files(&self) -> MountedFiles {
        MountedFiles::new(self.mounts.iter().filter_map(Mounted::direct).collect())
    }

    /// The first error that readers of a mount met, if any: the cause behind a model that cannot be read.
    pub(super) fn storage_failure(&self) -> Option<Failure> {
        self.mounts.iter().find_map(|mounted| mounted.health()).map(|cause| Failure::new(Exit::Storage, cause))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Mounts, loads, warms up and measures, noting in `work` what came of it. A worker node loads, and computes the steps of the leader.
///
/// # Errors
/// The first phase that fails, with its exit code.
pub async fn perform(context: &Context, work: &mut Work) -> Result<(), Failure> {
    batch::start(context);
    // Before anything is mounted: a backend that is missing ends the job in a second, and not after a download.
    let found = backend::check(&context.job).map_err(|reason| Failure::sentence(Exit::Configuration, reason))?;
    mount(context, work).await?;
    let (job, observability) = (&context.job, &context.observability);
    let sources = sources(job)?;
    observability.events.emit(Fact::PhaseStarted(Phase::Load));
    if job.is_worker() {
        let followed = worker::run(context, found, work.files(), &sources).await;
        return followed.map_err(|failure| work.storage_failure().unwrap_or(failure));
    }
    let stop = context.signals.cancel().child_token();
    if let Some(OpenBatch { batch, uploads }) = batch::open(context, sources.dataset.as_deref(), stop.clone()).await? {
        (work.batch, work.uploads) = (Some(batch), uploads);
    }
    if work.batch.as_ref().is_some_and(|batch| batch.answers.report().is_complete) {
        tracing::info!("earlier attempts have answered all of the batch: nothing is left to do");
        return Ok(());
    }
    // A read that fails in a mount reaches the loader as an I/O error of a file. The mount has the cause, and the exit code
    // is that of storage.
    let ready = load::load_and_prepare(context, found, work.files(), sources.clone(), work.batch.clone()).await;
    let Ready { mut backend, prepared } = ready.map_err(|failure| work.storage_failure().unwrap_or(failure))?;
    announce(&context.results.tracking, backend.report());
    // Kept before the run, so that a run that fails or is stopped reports them too.
    work.backend = Some(backend.report().clone());
    let (how, repeats) = (job.workload.warmup, job.workload.repeats);
    let progress = Arc::new(RunProgress::default());
    let outcome = match prepared {
        Prepared::Prompts { prompts, entries } => {
            work.entries = entries;
            tracing::info!(requests = prompts.len(), "all prompts are ready before they are measured");
            if let Some(path) = &sources.dataset {
                report_skipped(work, path);
            }
            let ran = watched(context, backend.gpus(), stop, None, {
                let progress = progress.clone();
                move |watch| bench::run(backend.as_mut(), &prompts, how, repeats, watch, &progress)
            });
            ran.await.and_then(|ran| ran.map_err(from_bench))
        }
        Prepared::Batch { entries, .. } => {
            tracing::info!(
                window_bytes = prepare::WINDOW_BYTES,
                "the batch is read and tokenised while it is answered; its measurement includes that"
            );
            // Read again when the run is over: whether all of the dataset was seen.
            let (entries, seed) = (Arc::new(entries), job.workload.seed);
            let ran = watched(context, backend.gpus(), stop, work.batch.clone(), {
                let (progress, entries) = (progress.clone(), entries.clone());
                move |watch| bench::answer(backend.as_mut(), &entries, seed, how, watch, &progress)
            });
            let outcome = ran.await.and_then(|ran| ran.map_err(from_bench));
            end_batch(work, &entries, outcome)
        }
    };
    take_up(context, work, &progress, outcome)
}

/// Ends the batch of `work`, whose run has this outcome.
///
/// # Errors
/// What ended the batch, a mount that could not be read, or the outcome's own.
fn end_batch(work: &Work, entries: &EntryStream, outcome: Result<(), Failure>) -> Result<(), Failure> {
    if let Some(batch) = &work.batch {
        batch.end(entries.count());
        // What ended the batch is the reason for which the run was stopped.
        if let Some(failure) = batch.failure() {
            return Err(failure);
        }
    }
    outcome.map_err(|failure| work.storage_failure().unwrap_or(failure))
}

/// Waits for `run` on a thread that may block, observed as `context` is and with the energy of `gpus` GPUs, until `cancel`. Entries and
/// completions go to `batch`. A step that takes too long is not waited for: `cancel` is triggered then.
///
/// # Errors
/// As [`blocking`], and a step that took too long.
pub(super) async fn watched<T: Send + 'static>(
    context: &Context,
    gpus: usize,
    cancel: CancellationToken,
    batch: Option<Arc<Batch>>,
    run: impl FnOnce(&Watch<'_>) -> T + Send + 'static,
) -> Result<T, Failure> {
    let Observability { events, recorder, step_times, step_watch, .. } = &context.observability;
    let (events, recorder, step_times) = (events.clone(), recorder.clone(), step_times.clone());
    let (stop, counters) = (cancel.clone(), context.resources.gpus.clone());
    let running = blocking(context.signals.cancel(), STEP_PATIENCE, move || {
        run(&Watch {
            events: &events,
            recorder: &recorder,
            step_times: &step_times,
            energy_joules: &|| counters.energy_joules(gpus),
            entered: &|entry| {
                if let Some(batch) = &batch {
                    batch.entered(entry);
                }
            },
            completed: &|completion| {
                if let Some(batch) = &batch {
                    batch.completed(completion);
                }
            },
            cancel: &cancel,
        })
    });
    let limit = StepLimit { asked: context.job.engine.step_timeout, on_gpus: gpus > 0 };
    tokio::select! {
        outcome = running => outcome,
        overdue = step_watch.overdue(limit) => {
            // The thread is left behind. Should its step end after all, it begins no other.
            stop.cancel();
            context.resources.is_stuck.store(true, Ordering::Relaxed);
            Err(Failure::new(Exit::Inference, overdue))
        }
    }
}

/// Mounts the inputs of the job into `work`.
///
/// # Errors
/// The first input that cannot be mounted.
pub(super) async fn mount(context: &Context, work: &mut Work) -> Result<(), Failure> {
    let Context { job, observability, resources, signals, .. } = context;
    observability.events.emit(Fact::PhaseStarted(Phase::Mount));
    mount_inputs(job, &resources.mounter, &observability.events, signals, work).await
}

/// Paths of everything that `job` reads, once its inputs are mounted: each of them may lie in one.
///
/// # Errors
/// What is not there.
pub(super) fn sources(job: &JobConfig) -> Result<Sources, Failure> {
    let model = located(job, &job.model, "model", Exit::Model, &Path::exists)?;
    let tokenizer = located(job, &job.tokenizer, "tokenizer", Exit::Model, &Path::exists)?;
    let dataset = match job.workload.dataset.path() {
        None => None,
        // One that is not there is a mistake in what was asked for, not in a model.
        Some(path) => {
            // A pattern is there where a file matches it.
            let is_there = |path: &Path| path.exists() || flashjob_dataset::find(path).is_ok();
            let named = ModelPath(path.to_owned());
            Some(located(job, &named, "dataset-path", Exit::Configuration, &is_there)?)
        }
    };
    Ok(Sources { model, tokenizer, dataset })
}

/// Takes what a run has achieved into `work`, says what did not go well, and judges its answers where `outcome` is good.
///
/// # Errors
/// Those of `outcome`, and too few correct answers.
pub(super) fn take_up(
    context: &Context,
    work: &mut Work,
    progress: &RunProgress,
    outcome: Result<(), Failure>,
) -> Result<(), Failure> {
    work.achieved = progress.take();
    work.accuracy = match &work.batch {
        Some(batch) => batch.answers.accuracy(),
        None => Accuracy::of(&work.entries, &work.achieved.completions),
    };
    report_failed(work);
    outcome.map_err(|failure| faults::explain(failure, &context.resources.gpus))?;
    let unknown = work.achieved.regions.iter().find_map(|region| region.measurement.roofline.unknown_because);
    if let Some(reason) = unknown {
        tracing::warn!(reason, "the roofline is unknown");
    }
    judge(work.accuracy, context.job.workload.least_accuracy)
}

/// Holds the share of correct answers against the least that the user takes.
fn judge(accuracy: Option<Accuracy>, least: Option<f64>) -> Result<(), Failure> {
    match (accuracy, least) {
        (Some(accuracy), Some(least)) if accuracy.share() < least => {
            let Accuracy { questions, correct } = accuracy;
            Err(Failure::sentence(
                Exit::Inaccurate,
                format!(
                    "{correct} of {questions} answers are correct, a share of {:.4} and below least-accuracy={least}; its answers \
                     say which are not",
                    accuracy.share()
                ),
            ))
        }
        _ => Ok(()),
    }
}

async fn mount_inputs(
    job: &JobConfig,
    mounter: &Mounter,
    events: &Events,
    signals: &Signals,
    work: &mut Work,
) -> Result<(), Failure> {
    let mut config = job.mount.clone();
    for input in &job.inputs {
        let outcome = mount::mount(input, &config, mounter, events, signals.cancel()).await;
        let mounted = outcome.map_err(|error| Failure::new(Exit::Storage, error))?;
        if input.par.is_some() {
            // It was for one mount.
            config.descriptor = None;
        }
        let facts = InputReport {
            location: mounted.location.display().to_string(),
            method: mounted.method.name().to_owned(),
            reason: mounted.reason.clone(),
            source: input.par.as_ref().map(ToString::to_string),
        };
        tracing::info!(
            location = facts.location,
            method = facts.method,
            reason = facts.reason,
            source = facts.source,
            "input is ready"
        );
        work.inputs.push(facts);
        work.mounts.push(mounted);
    }
    Ok(())
}

fn report_skipped(work: &Work, dataset: &Path) {
    let lines = SkippedLines::new(dataset);
    work.skipped().for_each(|(place, reason)| lines.note(place, reason));
    lines.end();
}

/// Names the entries whose requests ended with an error. Random prompts have none, and no run goes on after theirs.
fn report_failed(work: &Work) {
    let errors: HashMap<RequestId, &RequestError> = work
        .achieved
        .completions
        .iter()
        .filter_map(|completion| Some((completion.id, completion.error.as_ref()?)))
        .collect();
    let lines = FailedLines::default();
    for entry in &work.entries {
        let Entry::Asked { place, .. } = entry else { continue };
        if let Some(error) = entry.requests().find_map(|request| errors.get(&request).copied()) {
            lines.note(place, error);
        }
    }
    lines.end();
}

/// The path of what `key` names; where there is none the job ends with `exit`.
fn located(
    job: &JobConfig,
    named: &ModelPath,
    key: &str,
    exit: Exit,
    is_there: &dyn Fn(&Path) -> bool,
) -> Result<PathBuf, Failure> {
    locate(named, &job.inputs, key, is_there).map_err(|clause| {
        Failure::sentence(exit, format!("{clause}; check the name, and that `include` lets it through"))
    })
}

/// Says in the log and in MLflow what has been loaded.
pub(super) fn announce(tracking: &Tracking, report: &BackendReport) {
    tracing::info!(
        backend = report.backend,
        architecture = report.architecture,
        parameters = report.parameters,
        max_model_len = report.max_model_len,
        engine = %report.engine,
        "model is loaded"
    );
    let warnings = report.warnings.iter().map(String::as_str);
    for warning in report.other_modalities.into_iter().chain(warnings).take(REPORTED) {
        tracing::warn!("{}", exit::cut(warning.to_owned()));
    }
    if let Some(reason) = report.engine.limits_not_measured() {
        tracing::warn!(reason, "the machine's limits are not measured, so there is no roofline");
    }
    tracking.tag("backend", report.backend);
    tracking.tag("architecture", &report.architecture);
    let engine = &report.engine;
    for (key, value) in [
        ("device", engine.device()),
        ("dtype", engine.dtype()),
        ("weights_dtype", engine.weights_dtype()),
        ("kernels", engine.kernels()),
    ] {
        if let Some(value) = value {
            tracking.tag(key, value);
        }
    }
}

pub(super) fn from_backend(error: backend::Error) -> Failure {
    let exit = match &error {
        backend::Error::Ended(end) => Exit::of(end.code),
        backend::Error::Unavailable(_) => Exit::Configuration,
        backend::Error::Model(_) => Exit::Model,
        backend::Error::Inference(_) | backend::Error::Cancelled => Exit::Inference,
    };
    Failure::self_contained(exit, error)
}

pub(super) fn from_prepare(error: prepare::Error) -> Failure {
    match &error {
        prepare::Error::Workload(_) => Failure::new(Exit::Configuration, error),
        prepare::Error::Texts(_) => Failure::new(Exit::Model, error),
        prepare::Error::Encoding(_) => Failure::self_contained(Exit::Model, error),
    }
}

pub(super) fn from_bench(error: bench::Error) -> Failure {
    match error {
        bench::Error::Backend(error) => from_backend(error),
        bench::Error::Prompts(error) => from_prepare(error),
        bench::Error::Counts(_) | bench::Error::Request(_) | bench::Error::NoAnswers { .. } => {
            Failure::new(Exit::Inference, error)
        }
    }
}

//! The end of a run, whatever its status: files first, then mounts, then the bucket, MLflow and the terminal.

use std::io::IsTerminal;
use std::time::{Duration, SystemTime};

use flashjob_config::JobConfig;
use flashjob_event::{Fact, Phase};
use flashjob_mlflow::{Delivery, RunStatus};
use flashjob_results::{RecordedTimeline, Status, Summary};
use flashjob_telemetry::Registry;

use super::context::{Context, Results};
use super::exit::Failure;
use super::run::show;
use super::signals::Signals;
use super::work::Work;
use super::{Exit, batch, clock, host, replicas, resend_spooled, termination_file, upload};
use crate::bench::{self, Achieved, MeasuredRegion, Measurement};
use crate::report::{self, Answerer, Basis, Figures, JobResult, PrefixCaching, RepeatsReport, ResultsDirectory};

/// Time that MLflow has to accept what is left at the end of a run.
pub const FLUSH: Duration = Duration::from_secs(60);

/// Time that MLflow has after a signal: the process must be gone within 5 seconds of it.
pub const FLUSH_AFTER_SIGNAL: Duration = Duration::from_millis(2000);

/// Further time after a signal for the job's parent run.
const SETTLE_AFTER_SIGNAL: Duration = Duration::from_millis(1000);

/// End of the work: status, exit code, error, and what there is of results.
pub struct Ending {
    pub(super) status: Status,
    pub(super) exit: Exit,
    pub(super) error: Option<String>,
    pub(super) work: Work,
}

impl Ending {
    /// The end of work with this outcome. Work that was done when a signal came is finished: its result is complete.
    pub fn of(outcome: Result<(), Failure>, signals: &Signals, work: Work) -> Self {
        match (signals.exit(), outcome) {
            (_, Ok(())) => Self::measured(work),
            (Some(signal), Err(_)) => Self::killed(signal, signals.name(), work),
            (None, Err(failure)) => Self::failed(failure, work),
        }
    }

    /// All of it was measured.
    fn measured(work: Work) -> Self {
        Self { status: Status::Finished, exit: Exit::Done, error: None, work }
    }

    /// An error ended it.
    pub fn failed(failure: Failure, work: Work) -> Self {
        let error = Some(super::exit::cut(failure.message()));
        Self { status: Status::Failed, exit: failure.exit, error, work }
    }

    /// A signal ended it.
    fn killed(signal: Exit, name: &str, work: Work) -> Self {
        let error = format!("stopped by {name}; partial results are kept");
        Self { status: Status::Killed, exit: signal, error: Some(error), work }
    }
}

/// Writes the result to disk, unmounts, publishes, and prints the summary; gives the exit code.
pub async fn finish(context: &Context, mut ending: Ending) -> Exit {
    let mut result = conclude(context, &mut ending);
    let Ending { status, mut exit, mut work, .. } = ending;
    // On disk before anything that can hang or fail.
    context.results.descriptors.give_back();
    let mut kept = write(context, &result, &work);
    // After the files of the result, as it may wait for the kernel; before the network, so that a slow server leaves no
    // mount behind.
    tokio::task::block_in_place(|| work.unmount());

    // A result that is only in the log must not look like success to the controller.
    if status == Status::Finished && !kept {
        exit = Exit::Unexpected;
    }
    // Also of a job that failed or was stopped: its answers are where the next attempt may look for them.
    let are_answers_sent = match (work.uploads.take(), &work.batch) {
        (Some(uploads), Some(batch)) => batch::deliver(context, uploads, &batch.answers).await,
        _ => true,
    };
    let is_uploaded = match status {
        Status::Finished => upload(context).await && are_answers_sent,
        Status::Failed | Status::Killed => {
            // A bucket that took no answers has kept the job waiting long enough.
            if are_answers_sent {
                send_summary(context, &result).await;
            }
            true
        }
    };
    let (run_url, is_tracked) = track(context, status, &result, FLUSH).await;
    if exit == Exit::Done && !(is_uploaded && is_tracked) {
        exit = Exit::Undelivered;
    }
    if let Some(signal) = context.signals.exit() {
        exit = signal;
    }
    kept = write_again(&context.results.directory, &mut result, exit).unwrap_or(kept);
    // The log is the last place where the measurement can go.
    if !kept {
        tracing::error!(result = %result.to_json(), "results-dir could not be written; this line has the result");
    }
    termination_file::write(
        context.job.telemetry.termination_message.as_deref(),
        &report::termination_message(&result, run_url.as_deref()),
    );
    let directory = context.results.directory.path().display().to_string();
    show(&match std::io::stdout().is_terminal() {
        true => report::summary_table(&result, &directory, run_url.as_deref()),
        false => report::summary(&result, &directory, run_url.as_deref()),
    });
    exit
}

/// Writes the result of one combination of a sweep and publishes it; MLflow has `flush` for it. What belongs to the whole job (mounts,
/// termination message, summary) is left to its end.
pub async fn finish_combination(context: &Context, mut ending: Ending, flush: Duration) -> JobResult {
    let mut result = conclude(context, &mut ending);
    let Ending { status, exit, work, .. } = ending;
    let kept = write(context, &result, &work);
    let is_uploaded = status != Status::Finished || upload(context).await;
    let (_, is_tracked) = track(context, status, &result, flush).await;
    let code = match exit {
        Exit::Done if !kept => Exit::Unexpected,
        Exit::Done if !(is_uploaded && is_tracked) => Exit::Undelivered,
        exit => exit,
    };
    write_again(&context.results.directory, &mut result, code);
    if !kept {
        tracing::error!(result = %result.to_json(), "a combination's results could not be written; this line has them");
    }
    result
}

/// The result of `ending`, whose regions and reports of inputs it takes.
fn conclude(context: &Context, ending: &mut Ending) -> JobResult {
    let Ending { status, exit, error, work } = ending;
    *error = error.take().map(|error| context.job.hide(&error));
    if let Some(error) = error {
        tracing::error!(exit_code = exit.code(), "{error}");
    }
    context.observability.events.emit(Fact::PhaseStarted(Phase::Publish));
    // A run that failed or was stopped shows the part that was measured.
    let Achieved { warm_up, regions, stopped_by, .. } = &mut work.achieved;
    let (warm_up, stopped_by, regions) = (*warm_up, *stopped_by, std::mem::take(regions));
    let whole: Vec<&Measurement> = regions.iter().map(|region| &region.measurement).collect();
    let measurement = Measurement::together(&whole).or_else(|| {
        let partial = context.observability.recorder.measurement();
        (partial.totals.requests > 0).then_some(partial)
    });
    let phases = context.observability.phases.seconds();
    // The configured price is that of one node.
    let price = context.job.price_per_hour.map(|price| price * context.job.num_nodes() as f64);
    let basis = measurement.as_ref().map(|measurement| Basis {
        measurement,
        regions: &regions,
        phases: &phases,
        price_per_hour: price,
        gpus: work.backend.as_ref().map_or(0, |backend| backend.engine.gpus()),
        accuracy: work.accuracy,
    });
    let figures = basis.as_ref().map(Figures::new);
    let repeats = basis.as_ref().and_then(|basis| RepeatsReport::new(basis, stopped_by));
    let mut result = JobResult {
        status: *status,
        exit_code: exit.code(),
        error: error.clone(),
        started_at: clock::rfc3339(context.started),
        ended_at: clock::rfc3339(SystemTime::now()),
        settings: context.job.settings.clone(),
        inputs: std::mem::take(&mut work.inputs),
        skipped_inputs: work.skipped_inputs(),
        disturbances: disturbances(&context.observability.registry),
        warnings: warnings(&regions, work, &context.job),
        warm_up,
        repeats,
        accuracy: work.accuracy,
        batch: work.batch.as_ref().map(|batch| batch.answers.report()),
        prefix_caching: PrefixCaching::of(&context.job),
        summary: None,
        backend: work.backend.clone(),
        environment: host::describe(&context.resources.privileges),
        phases,
        measurement,
        figures,
    };
    let progress = context.observability.registry.totals().batch;
    let answers = work.batch.as_ref().map(|batch| &batch.answers);
    result.summary = progress.map(|progress| report::batch_summary(&result, answers, batch::part_of(&progress)));
    result
}

/// Warnings about the first region; the others are like it.
fn warnings(regions: &[MeasuredRegion], work: &Work, job: &JobConfig) -> Vec<String> {
    let (Some(region), Some(backend)) = (regions.first(), &work.backend) else { return Vec::new() };
    let found = bench::warnings(&region.measurement, &backend.engine, job.workload.dataset.measures());
    found.into_iter().inspect(|sentence| tracing::warn!("{sentence}")).collect()
}

/// Other work of the machine while it measured.
fn disturbances(registry: &Registry) -> Vec<String> {
    let rate = registry.disturbing_requests_per_second();
    let sentence = rate.map(|rate| {
        format!(
            "{rate:.0} requests per second reached the metrics port while it was measured: answering them took processor \
             time, so that figures may be too low; scrape less often and measure again"
        )
    });
    sentence.into_iter().inspect(|sentence| tracing::warn!("{sentence}")).collect()
}

/// Writes all files of the run. False: not all of the result is on disk.
fn write(context: &Context, result: &JobResult, work: &Work) -> bool {
    let directory = &context.results.directory;
    let mut kept = write_result(directory, result);
    match (&result.measurement, result.status) {
        (Some(measurement), _) => kept &= note("requests.jsonl", directory.write_requests(&measurement.requests)),
        // Of a batch that was answered before: the figures of all replicas are made of the files of each.
        (None, Status::Finished) => kept &= note("requests.jsonl", directory.write_requests(&[])),
        (None, _) => {}
    }
    // Those of a batch are written as they come.
    if !work.achieved.completions.is_empty() && !work.entries.is_empty() {
        let model = context.job.model.0.display().to_string();
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let lines = report::outputs(&work.entries, &work.achieved.completions, Answerer { model: &model, created });
        kept &= note("outputs.jsonl", directory.write_outputs(lines));
    }
    write_page(context, result);
    kept
}

/// Writes the result again where delivery has changed its exit code, as the file must agree with the process; tells whether it is
/// on disk then.
fn write_again(directory: &ResultsDirectory, result: &mut JobResult, exit: Exit) -> Option<bool> {
    if exit.code() == result.exit_code {
        return None;
    }
    result.exit_code = exit.code();
    if let Some(summary) = &mut result.summary {
        summary.exit_code = exit.code();
    }
    let kept = write_result(directory, result);
    write_report(directory);
    Some(kept)
}

/// Writes the timeline, and the page that is made of all files. A result is whole without them.
fn write_page(context: &Context, result: &JobResult) {
    let directory = &context.results.directory;
    // Combinations of a sweep share the timeline: of one that was not measured it would be another's.
    if result.measurement.is_some()
        && let Some(timeline) = context.observability.timeline.recorded()
    {
        note(RecordedTimeline::FILE, directory.write_timeline(&timeline));
    }
    write_report(directory);
}

fn write_report(directory: &ResultsDirectory) {
    if let Err(error) = directory.write_report() {
        tracing::warn!(%error, "there is no report.html");
    }
}

fn write_result(directory: &ResultsDirectory, result: &JobResult) -> bool {
    let mut kept = note("result.json", directory.write_result(result));
    if let Some(summary) = &result.summary {
        kept &= note(Summary::FILE, directory.write_summary(summary));
    }
    kept
}

fn note<T>(file: &str, written: std::io::Result<T>) -> bool {
    written.map_err(|error| tracing::error!(file, %error, "a result file could not be written")).is_ok()
}

/// Sends the result files to the output bucket. False: they are only on disk.
async fn upload(context: &Context) -> bool {
    let Some(output) = &context.job.output else { return true };
    let results = &context.results.directory;
    let patience = context.job.mount.storage_timeout;
    let sending = upload::upload(output, results, results.files(), patience, &context.observability.events);
    match context.signals.cancel().run_until_cancelled(sending).await {
        Some(Ok(names)) => {
            tracing::info!(bucket = %output.par, files = ?names, "results are in the bucket");
            true
        }
        Some(Err(error)) => {
            let directory = results.path().display();
            tracing::error!(
                %error,
                "the bucket could not take the results: `flashjob publish {directory}` with output-par sends them later"
            );
            false
        }
        None => false,
    }
}

/// Sends the summary of a batch that did not finish: a pipeline finds in the bucket what has become of it.
async fn send_summary(context: &Context, result: &JobResult) {
    let (Some(output), Some(_)) = (&context.job.output, &result.summary) else { return };
    let results = &context.results.directory;
    let patience = match context.signals.exit() {
        Some(_) => FLUSH_AFTER_SIGNAL,
        None => context.job.mount.storage_timeout,
    };
    let files = vec![results.path().join(Summary::FILE)];
    let sending = upload::upload(output, results, files, patience, &context.observability.events);
    match tokio::time::timeout(patience, sending).await {
        Ok(Ok(_)) => tracing::info!(bucket = %output.par, "the summary of the batch is in the bucket"),
        Ok(Err(error)) => tracing::warn!(%error, "the bucket could not take summary.json, which is in results-dir"),
        Err(_) => tracing::warn!("the bucket did not take summary.json in time; it is in results-dir"),
    }
}

/// Sends the end of the run to MLflow: the run's address there, and whether MLflow has all that it should have.
async fn track(context: &Context, status: Status, result: &JobResult, flush: Duration) -> (Option<String>, bool) {
    let Context { job, signals, results, .. } = context;
    match end_tracking(results, signals, status, result, flush).await {
        Some(Delivery::Delivered { link, notes }) => {
            for note in notes {
                tracing::warn!("{note}");
            }
            tracing::info!(url = link.run_url, "the run is in MLflow");
            if let Some(moved) = results.directory.moved() {
                signals.cancel().run_until_cancelled(resend_spooled::send(job, &moved.to)).await;
            }
            let is_settled = settle(job, &results.directory, signals).await;
            (Some(link.run_url), is_settled)
        }
        Some(Delivery::Spooled { reason }) => {
            let directory = results.directory.path().display();
            tracing::error!(reason, "MLflow could not take the result: `flashjob publish {directory}` sends it later");
            (None, false)
        }
        Some(Delivery::Lost { reason }) => {
            tracing::error!(reason, "MLflow could not take the result, and the spool could not be written");
            (None, false)
        }
        None => (None, true),
    }
}

/// Hands the end of the run to the tracker. A signal that arrives meanwhile makes it a killed run and leaves little time.
async fn end_tracking(
    results: &Results,
    signals: &Signals,
    status: Status,
    result: &JobResult,
    flush: Duration,
) -> Option<Delivery> {
    let run_status = match status {
        Status::Finished => RunStatus::Finished,
        Status::Failed => RunStatus::Failed,
        Status::Killed => RunStatus::Killed,
    };
    let Results { tracking, directory, .. } = results;
    let cancel = signals.cancel();
    if cancel.is_cancelled() {
        return tracking.finish(directory, run_status, result, FLUSH_AFTER_SIGNAL).await;
    }
    // A signal drops this attempt half-way. The second one hands over the same end: the spool makes that safe.
    let patient = cancel.run_until_cancelled(tracking.finish(directory, run_status, result, flush)).await;
    match patient {
        Some(delivery) => delivery,
        None => tracking.finish(directory, RunStatus::Killed, result, FLUSH_AFTER_SIGNAL).await,
    }
}

/// Brings the whole job up to date, where this run is a part of one. False: `flashjob publish` has to.
async fn settle(job: &JobConfig, results: &ResultsDirectory, signals: &Signals) -> bool {
    let (Some(tracking), Some(member)) = (&job.tracking, replicas::membership(job)) else {
        return true;
    };
    let cancel = signals.cancel();
    // After a signal the token is triggered already, so that only time can limit the call.
    let settled = if cancel.is_cancelled() {
        Some(replicas::settle(tracking, &member, SETTLE_AFTER_SIGNAL).await)
    } else {
        cancel.run_until_cancelled(replicas::settle(tracking, &member, FLUSH)).await
    };
    if let Some(Err(error)) = &settled {
        let directory = results.path().display();
        tracing::error!(%error, "the job's parent run is not up to date: `flashjob publish {directory}` sees to it");
    }
    matches!(settled, Some(Ok(())))
}

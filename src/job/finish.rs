//! The end of a run, whichever it was: files first, then mounts, then whoever wants to know.

use std::time::{Duration, SystemTime};

use super::exit::Failure;
use super::run::{Context, show};
use super::work::Work;
use super::{Exit, environment, left_behind, replicas, upload};
use crate::report::{self, Answerer, Figures, JobResult, Status};
use flashjob_event::{Fact, Phase};
use flashjob_mlflow::{Delivery, RunStatus};

/// How long MLflow may take to accept what is left at the end of a run.
const FLUSH: Duration = Duration::from_secs(60);

/// The same after a signal: the process must be gone within 5 seconds of it.
const FLUSH_AFTER_SIGNAL: Duration = Duration::from_millis(2000);

/// And after that, for the job's parent run.
const SETTLE_AFTER_SIGNAL: Duration = Duration::from_millis(1000);

/// How the work ended.
pub struct Ending {
    pub(super) status: Status,
    pub(super) exit: Exit,
    pub(super) error: Option<String>,
    pub(super) work: Work,
}

impl Ending {
    /// All of it was measured.
    pub fn measured(work: Work) -> Self {
        Self { status: Status::Finished, exit: Exit::Done, error: None, work }
    }

    /// An error ended it.
    pub fn failed(failure: Failure, work: Work) -> Self {
        // `{:#}` joins the chain of causes with colons.
        Self {
            status: Status::Failed,
            exit: failure.exit,
            error: Some(super::exit::cut(format!("{:#}", failure.error))),
            work,
        }
    }

    /// A signal ended it.
    pub fn killed(signal: Exit, name: &str, work: Work) -> Self {
        let error = format!("stopped by {name}; partial results are kept");
        Self { status: Status::Killed, exit: signal, error: Some(error), work }
    }
}

/// Keeps, unmounts, publishes and tells; gives the exit code.
pub async fn finish(context: &Context, ending: Ending) -> Exit {
    let Ending { status, mut exit, error, mut work } = ending;
    let error = error.map(|error| context.job.hide(&error));
    if let Some(error) = &error {
        tracing::error!(exit_code = exit.code(), "{error}");
    }
    context.events.emit(Fact::PhaseStarted(Phase::Publish));
    let measurement = work.measurement.take().or_else(|| {
        let partial = context.recorder.measurement();
        (!partial.requests.is_empty()).then_some(partial)
    });
    let phases = context.phases.seconds();
    let price = context.job.price_per_hour.map(|price| price * context.job.machine_count() as f64);
    let figures = measurement.as_ref().map(|measurement| Figures::new(measurement, &phases, price));
    let mut result = JobResult {
        status,
        exit_code: exit.code(),
        error,
        started_at: environment::rfc3339(context.started),
        ended_at: environment::rfc3339(SystemTime::now()),
        settings: environment::settings(&context.job),
        inputs: std::mem::take(&mut work.inputs),
        skipped_inputs: work.skipped().count(),
        disturbances: disturbances(context),
        backend: work.backend.clone(),
        environment: environment::describe(&context.privileges),
        phases,
        measurement,
        figures,
    };
    // On disk before anything that can hang or fail.
    context.descriptors.give_back();
    let mut kept = write(context, &result, &work);
    tokio::task::block_in_place(|| work.unmount());

    if status == Status::Finished && !kept {
        exit = Exit::Unexpected;
    }
    if status == Status::Finished && !upload(context).await && exit == Exit::Done {
        exit = Exit::Undelivered;
    }
    let delivery = track(context, status, &result).await;
    let run_url = match delivery {
        Some(Delivery::Delivered { link, notes }) => {
            for note in notes {
                tracing::warn!("{note}");
            }
            tracing::info!(url = link.run_url, "the run is in MLflow");
            if let Some(moved) = context.directory.moved() {
                let left_behind = left_behind::send(&context.job, &moved.to);
                context.signals.cancel().run_until_cancelled(left_behind).await;
            }
            if !settle(context).await && exit == Exit::Done {
                exit = Exit::Undelivered;
            }
            Some(link.run_url)
        }
        Some(Delivery::Spooled { reason }) => {
            let directory = context.directory.path().display();
            tracing::error!(reason, "MLflow could not take the result: `flashjob publish {directory}` sends it later");
            if exit == Exit::Done {
                exit = Exit::Undelivered;
            }
            None
        }
        Some(Delivery::Lost { reason }) => {
            tracing::error!(reason, "MLflow could not take the result, and the spool could not be written");
            if exit == Exit::Done {
                exit = Exit::Undelivered;
            }
            None
        }
        None => None,
    };
    if let Some(signal) = context.signals.exit() {
        exit = signal;
    }
    if exit.code() != result.exit_code {
        result.exit_code = exit.code();
        kept = write_result(context, &result);
    }
    if !kept {
        tracing::error!(result = %result.to_json(), "results-dir could not be written; this line has the result");
    }
    environment::leave_termination_message(
        context.job.telemetry.termination_message.as_deref(),
        &report::termination_message(&result, run_url.as_deref()),
    );
    show(&report::summary(&result, &context.directory.path().display().to_string(), run_url.as_deref()));
    exit
}

/// Other work of the machine while it measured.
fn disturbances(context: &Context) -> Vec<String> {
    let rate = context.registry.disturbing_requests_per_second();
    let sentence = rate.map(|rate| {
        format!(
            "{rate:.0} requests per second reached the metrics port while it was measured: answering them took processor \
             time, so that figures may be too low; scrape less often and measure again"
        )
    });
    sentence.into_iter().inspect(|sentence| tracing::warn!("{sentence}")).collect()
}

fn write(context: &Context, result: &JobResult, work: &Work) -> bool {
    let mut kept = write_result(context, result);
    if let Some(measurement) = &result.measurement {
        kept &= note("requests.jsonl", context.directory.write_requests(measurement));
    }
    if !work.completions.is_empty() && !work.entries.is_empty() {
        let model = context.job.model.0.display().to_string();
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let lines = report::outputs(&work.entries, &work.completions, Answerer { model: &model, created });
        kept &= note("outputs.jsonl", context.directory.write_outputs(lines));
    }
    kept
}

fn write_result(context: &Context, result: &JobResult) -> bool {
    note("result.json", context.directory.write_result(result))
}

fn note<T>(file: &str, written: std::io::Result<T>) -> bool {
    written.map_err(|error| tracing::error!(file, %error, "a result file could not be written")).is_ok()
}

/// Sends the result files to the output bucket. False: they are only on disk.
async fn upload(context: &Context) -> bool {
    let Some(output) = &context.job.output else { return true };
    let patience = context.job.mount.storage_timeout;
    let cancel = context.signals.cancel();
    let directory = context.directory.path().display();
    match cancel.run_until_cancelled(upload::upload(output, &context.directory, patience, &context.events)).await {
        Some(Ok(names)) => {
            tracing::info!(bucket = %output.par, files = ?names, "results are in the bucket");
            true
        }
        Some(Err(error)) => {
            tracing::error!(
                %error,
                "the bucket could not take the results: `flashjob publish {directory}` with output-par sends them later"
            );
            false
        }
        None => false,
    }
}

/// Brings the whole job up to date, where this run is a part of one. False: `flashjob publish` has to.
async fn settle(context: &Context) -> bool {
    let (Some(tracking), Some(member)) = (&context.job.tracking, replicas::membership(&context.job)) else {
        return true;
    };
    let cancel = context.signals.cancel();
    let settled = if cancel.is_cancelled() {
        Some(replicas::settle(tracking, &member, SETTLE_AFTER_SIGNAL).await)
    } else {
        cancel.run_until_cancelled(replicas::settle(tracking, &member, FLUSH)).await
    };
    if let Some(Err(error)) = &settled {
        let directory = context.directory.path().display();
        tracing::error!(%error, "the job's parent run is not up to date: `flashjob publish {directory}` sees to it");
    }
    matches!(settled, Some(Ok(())))
}

/// Tells MLflow the end. A signal that arrives meanwhile makes it a killed run and leaves little time.
async fn track(context: &Context, status: Status, result: &JobResult) -> Option<Delivery> {
    let run_status = match status {
        Status::Finished => RunStatus::Finished,
        Status::Failed => RunStatus::Failed,
        Status::Killed => RunStatus::Killed,
    };
    let cancel = context.signals.cancel();
    if cancel.is_cancelled() {
        return context.tracking.finish(context, run_status, result, FLUSH_AFTER_SIGNAL).await;
    }
    let patient = cancel.run_until_cancelled(context.tracking.finish(context, run_status, result, FLUSH)).await;
    match patient {
        Some(delivery) => delivery,
        None => context.tracking.finish(context, RunStatus::Killed, result, FLUSH_AFTER_SIGNAL).await,
    }
}

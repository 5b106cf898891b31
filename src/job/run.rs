//! One run from first to last: mount, load, warm up, measure, publish, linger.
//!
//! Whatever happens on the way (an error, a signal, a panic), the ending is the same: what was measured goes to
//! disk, mounts come down, MLflow is told, and the exit code says which it was.

use std::io::{self, IsTerminal};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use flashjob_config::{JobConfig, Repeats, Sweep};
use flashjob_event::{Fact, Phase};
use flashjob_mount::Mounter;
use flashjob_telemetry::logs::{self, Logs};
use flashjob_telemetry::{Expected, LingerEnd, Live, Progress, Sampler, Server};

use super::context::Context;
use super::exit::Failure;
use super::finish::{self, Ending};
use super::signals::Signals;
use super::work::{self, Work};
use super::{Exit, clock, exit, linger, panics, supervisor, sweep, terminal, worker};
use crate::report::{Privileges, ResultsDirectory};

/// Interval in which the host is sampled and live points go to MLflow.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(2);

/// Time for which threads that do not look at their cancellation may hold up the exit.
const LEAVE_BEHIND_AFTER: Duration = Duration::from_millis(200);

/// Runs `job`, or the combinations of `sweep`, to the end, in a process that has `privileges` and nothing more.
pub fn run(job: JobConfig, sweep: Option<Sweep>, mounter: Mounter, privileges: Privileges) -> Exit {
    // Computing has threads of its own. These two serve metrics, uploads and signals beside it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return exit::before_log(Exit::Unexpected, &format!("no threads for the runtime: {error}")),
    };
    let ended = runtime.block_on(run_in_runtime(job, sweep.as_ref(), mounter, privileges));
    // A thread that is stuck in a read or a kernel must not keep the process from ending.
    runtime.shutdown_timeout(LEAVE_BEHIND_AFTER);
    match ended {
        Ok(RunEnd { exit, is_stuck: true }) => supervisor::leave(exit.code()),
        Ok(RunEnd { exit, .. }) | Err(exit) => exit,
    }
}

/// Exit code of a run that began.
struct RunEnd {
    exit: Exit,
    /// A thread hangs in a device's driver.
    is_stuck: bool,
}

/// # Errors
/// The end of a run that could not begin.
async fn run_in_runtime(
    job: JobConfig,
    sweep: Option<&Sweep>,
    mounter: Mounter,
    privileges: Privileges,
) -> Result<RunEnd, Exit> {
    let started = SystemTime::now();
    let (directory, log) = match open_results(&job, started, &privileges) {
        Ok(opened) => opened,
        Err(sentence) => return Err(exit::before_log(Exit::Configuration, &sentence)),
    };
    // The hook writes to the log, which runs from here on.
    panics::log();
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            return Err(exit::before_log(Exit::Unexpected, &format!("signals cannot be watched: {error}")));
        }
    };
    announce(&job, &directory, &privileges);
    let context = Context::new(job, started, signals, directory, mounter, privileges);
    let registry = &context.observability.registry;
    let total = match sweep {
        Some(sweep) => sweep.planned().map(|(_, planned)| expected(&planned.config)).fold(NOTHING, |sum, one| {
            Expected { requests: sum.requests + one.requests, output_tokens: sum.output_tokens + one.output_tokens }
        }),
        None => expected(&context.job),
    };

    // Before anything is mounted: a port that is taken would leave the job without metrics, which shows only when they are
    // needed.
    let live = Live {
        timeline: context.observability.timeline.clone(),
        log: log.tail(),
        expected: total,
        name: context.job.model_name(),
    };
    let server = match Server::start(context.job.telemetry.metrics_address, registry.clone(), live).await {
        Ok(server) => server,
        Err(error) => {
            let failure = Failure::new(Exit::Configuration, error);
            return Err(finish(&context, Ending::failed(failure, Work::default())).await);
        }
    };
    tracing::info!(address = %server.address(), "metrics are served");
    let mut work = Work::default();
    let performed = async {
        match sweep {
            Some(sweep) => sweep::perform(&context, sweep, &mut work).await,
            None => work::perform(&context, &mut work).await,
        }
    };
    let outcome = observed(&context, &log, total, performed).await;

    let measured = outcome.is_ok();
    let exit = finish(&context, Ending::of(outcome, &context.signals, work)).await;

    context.observability.events.emit(Fact::PhaseStarted(Phase::Linger));
    if measured && !context.job.is_worker() && context.signals.exit().is_none() {
        linger(&context, &server).await;
    }
    server.stop().await;
    tracing::info!(exit_code = exit.code(), "flashjob ends");
    // A signal while metrics linger is the controller's, which expects the code of a stopped process.
    let exit = if exit == Exit::Done { context.signals.exit().unwrap_or(exit) } else { exit };
    Ok(RunEnd { exit, is_stuck: context.resources.is_stuck.load(Ordering::Relaxed) })
}

/// Opens `results-dir` for this run, and begins the log, which has a copy there.
///
/// # Errors
/// A sentence about the directory or about the log's filter.
fn open_results(
    job: &JobConfig,
    started: SystemTime,
    privileges: &Privileges,
) -> Result<(ResultsDirectory, Logs), String> {
    let at = job.results_dir.display();
    let directory = ResultsDirectory::open(&job.results_dir, &clock::folder_name(started)).map_err(|error| {
        let hint =
            if is_denied(&error) { format!("; this process has few rights: {privileges}") } else { String::new() };
        format!("results-dir={at} {error}{hint}")
    })?;
    let copy = directory.create_log().map_err(|error| {
        format!("results-dir={at} takes no log: {error}; choose a directory that this user may write")
    })?;
    let filter = std::env::var("FLASHJOB_LOG").ok().filter(|filter| !filter.trim().is_empty());
    let log = logs::init(&logs::Options {
        format: job.telemetry.log_format,
        filter: filter.as_deref(),
        copy: Some(&copy),
        secrets: &job.secrets(),
    });
    log.map(|log| (directory, log)).map_err(|error| error.to_string())
}

/// The first lines of the log: version, rights, directory and settings.
fn announce(job: &JobConfig, directory: &ResultsDirectory, privileges: &Privileges) {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), results_dir = %directory.path().display(), "flashjob starts");
    tracing::info!("rights of this process: {privileges}");
    if let Some(reason) = directory.unlocked() {
        tracing::warn!(%reason, "results-dir cannot be locked here: make sure that no other job uses it");
    }
    if let Some(moved) = directory.moved() {
        tracing::info!(to = %moved.to.display(), files = ?moved.names, "files of the run before this one were moved");
    }
    for setting in &job.settings {
        tracing::debug!(key = setting.key, value = %setting.value, origin = %setting.origin, "setting");
    }
}

/// The outcome of `work`, during which the host is sampled, live points go to MLflow, and progress is shown.
async fn observed(
    context: &Context,
    log: &Logs,
    total: Expected,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let registry = &context.observability.registry;
    let live = context.results.tracking.live();
    let (directory, gpus) = (context.results.directory.path().to_owned(), context.resources.gpus.clone());
    let timeline = context.observability.timeline.clone();
    let sampler = Sampler::start(SAMPLE_INTERVAL, directory, gpus, registry.clone(), timeline, {
        let live = live.clone();
        move |name, value| live.system_metric(name, value)
    });
    if let Err(error) = &sampler {
        tracing::warn!(%error, "host metrics are not sampled");
    }
    let points = live.follow(registry.clone(), SAMPLE_INTERVAL);
    let progress = Progress::start(registry.clone(), log, total);
    let outcome = caught(work).await;
    points.abort();
    drop(progress);
    drop(sampler);
    outcome
}

/// Keeps metrics up for the scrape that sees the final values.
async fn linger(context: &Context, server: &Server) {
    let watchers = linger::Watchers {
        at_a_terminal: std::io::stderr().is_terminal(),
        was_scraped: server.was_scraped(),
        orchestrated: linger::is_orchestrated(|name| std::env::var_os(name)),
    };
    let (linger, reason) = linger::decide(context.job.telemetry.metrics_linger, watchers);
    let seconds = linger.as_secs_f64();
    tracing::info!(seconds, reason, "metrics stay up for a last scrape");
    match server.linger(linger, context.signals.cancel()).await {
        LingerEnd::Scraped => tracing::info!("the final metrics were scraped"),
        LingerEnd::TimedOut => tracing::info!(seconds, "no scraper that had come before took the final metrics"),
        LingerEnd::Cancelled => {}
    }
}

/// Tells that the system denied a right.
fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    // The reason may be a few causes deep.
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    error.downcast_ref().is_some_and(denied) || error.source().is_some_and(is_denied)
}

/// Finishes the run here and on other nodes. They learn of a failure at once, and of success when the result is delivered:
/// until then a leader that is lost takes its workers with it, and all of them are tried again.
async fn finish(context: &Context, ending: Ending) -> Exit {
    let tell = |exit: Exit, sentence: &str| {
        if let Some(rendezvous) = &context.resources.rendezvous {
            // It writes to sockets of other nodes, and waits for those that are slow.
            tokio::task::block_in_place(|| rendezvous.end(exit.code(), sentence));
        }
    };
    if let Some(error) = &ending.error {
        tell(ending.exit, error);
    }
    let exit = match context.job.is_worker() {
        true => worker::finish(&context.job, &context.signals, ending),
        false => finish::finish(context, ending).await,
    };
    tell(exit, "its result could not be delivered, or a signal stopped it meanwhile; its log says which");
    exit
}

/// Totals of no job.
const NOTHING: Expected = Expected { requests: 0, output_tokens: 0 };

/// Totals that the progress bar counts towards.
fn expected(job: &JobConfig) -> Expected {
    let requests = job.workload.num_prompts.map_or(0, |number| job.workload.share.of(number.get()).len() as u64);
    // Lines and replies of a dataset have lengths of their own.
    let output_len = if job.workload.dataset.has_input_len() { job.workload.output_len.get() } else { 0 };
    // A repetition of unknown length has no total.
    let regions = match job.workload.repeats {
        Repeats::Count(count) => count.get() as u64,
        Repeats::UntilClose => 0,
    };
    let requests = requests * regions;
    Expected { requests, output_tokens: requests * output_len as u64 }
}

/// The outcome of `work`; a panic in it is a failure like others, so that the ending is the same too.
async fn caught(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    // What a panic may leave half done is behind locks whose poison is ignored, or is not looked at again.
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err(panics::failure()))
}

/// Waits for `work` on a thread that may block. Once `cancel` is triggered it is given `patience` to notice, and then
/// left behind: the process is about to end.
///
/// # Errors
/// [`Exit::Unexpected`] when `work` panicked or was left behind.
pub async fn blocking<T: Send + 'static>(
    cancel: &CancellationToken,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let mut task = tokio::task::spawn_blocking(work);
    let joined = tokio::select! {
        joined = &mut task => joined,
        () = cancel.cancelled() => match tokio::time::timeout(patience, task).await {
            Ok(joined) => joined,
            Err(_) => return Err(Failure::sentence(Exit::Unexpected, "work was left behind when it was to stop")),
        },
    };
    joined.map_err(|_| panics::failure())
}

/// Prints `text` for people, on standard output.
pub fn show(text: &str) {
    terminal::print(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_unexpected_failure_wherever_it_happens() {
        let on_a_thread = blocking(&CancellationToken::new(), Duration::ZERO, || panic!("on a thread")).await;
        let in_the_future = caught(async { panic!("in the future") }).await;
        for failure in [on_a_thread.unwrap_err(), in_the_future.unwrap_err()] {
            assert_eq!(failure.exit, Exit::Unexpected);
            assert!(failure.message().contains("this is a bug, please report it"), "{}", failure.message());
        }
    }

    #[tokio::test]
    async fn work_that_does_not_notice_a_signal_is_left_behind() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let outcome = blocking(&cancel, Duration::from_millis(1), move || held.recv().ok()).await;
        assert_eq!(outcome.unwrap_err().exit, Exit::Unexpected);
        drop(release);
    }
}

//! Tracking of this job in MLflow: params, tags, live points, and the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use flashjob_config::JobConfig;
use flashjob_mlflow::{Delivery, RunEnd, RunKey, RunSpec, RunStatus, Tracker};
use flashjob_telemetry::{BatchProgress, Registry};

use super::{clock, host, replicas};
use crate::report::{self, JobResult, ResultsDirectory};

/// Files with answers of a batch that are artifacts of the run at most.
const MOST_ANSWER_FILES: usize = 16;

/// The run in MLflow, or nothing where none was asked for.
pub struct Tracking {
    is_asked_for: bool,
    key: RunKey,
    tracker: Option<Arc<Mutex<Tracker>>>,
    live: Live,
}

/// Handle for live points: cheap to clone, never waits.
#[derive(Clone)]
pub struct Live {
    tracker: Option<Arc<Mutex<Tracker>>>,
    step: Arc<AtomicU64>,
}

impl Tracking {
    /// Writes the spool and begins to send; the run will be shown under `parent`. A spool that cannot be written is logged, and the run goes on without it:
    /// `result.json` has everything too.
    pub fn start(job: &JobConfig, directory: &ResultsDirectory, started: SystemTime, parent: Option<&RunKey>) -> Self {
        let key = RunKey::random(started);
        // A worker records nothing: its leader has the run.
        let tracker = job.tracking.as_ref().filter(|_| !job.is_worker()).and_then(|tracking| {
            let spec = RunSpec {
                key: key.clone(),
                run_name: tracking.run_name.clone().unwrap_or_else(|| default_run_name(job, started)),
                params: job.settings.iter().map(|s| (s.key.clone(), s.value.clone())).collect(),
                tags: host::tags(),
                start: started,
                member: replicas::membership(job),
                parent: parent.cloned(),
            };
            // The next run moves only files that the record names: an unknown spool would keep it out of the directory.
            let started = match directory.expect_spool(spec.key.as_str()) {
                Ok(()) => Tracker::start(tracking, &spec, directory.path()).map_err(|error| error.to_string()),
                Err(error) => Err(format!("results-dir cannot be written: {error}")),
            };
            started.map_err(|error| tracing::error!(error, "the run cannot be recorded for MLflow")).ok()
        });
        let tracker = tracker.map(|tracker| Arc::new(Mutex::new(tracker)));
        let live = Live { tracker: tracker.clone(), step: Arc::default() };
        Self { is_asked_for: job.tracking.is_some(), key, tracker, live }
    }

    /// Key of the run, by which others are put under it.
    pub fn key(&self) -> &RunKey {
        &self.key
    }

    /// Records a tag that became known later.
    pub fn tag(&self, key: &str, value: &str) {
        self.live.with(|tracker| tracker.tag(key, value));
    }

    /// The handle for live points.
    pub fn live(&self) -> Live {
        self.live.clone()
    }

    /// Hands over the end and waits for at most `flush`. `None` where MLflow was not asked for.
    pub async fn finish(
        &self,
        directory: &ResultsDirectory,
        status: RunStatus,
        result: &JobResult,
        flush: Duration,
    ) -> Option<Delivery> {
        if !self.is_asked_for {
            return None;
        }
        let Some(tracker) = &self.tracker else {
            return Some(Delivery::Lost { reason: "the spool could not be written at the start".to_owned() });
        };
        let mut tags = vec![
            ("exit_code".to_owned(), result.exit_code.to_string()),
            // The description at the top of the run's page.
            ("mlflow.note.content".to_owned(), report::markdown_table(result)),
        ];
        if let Some(error) = &result.error {
            tags.push(("error".to_owned(), error.clone()));
        }
        if let Some(reason) = result.measurement.as_ref().and_then(|measurement| measurement.roofline.unknown_because) {
            tags.push(("roofline_unknown_because".to_owned(), reason.to_owned()));
        }
        // Answers of a large batch are for the bucket.
        let answers = Some(directory.answers()).filter(|files| files.len() <= MOST_ANSWER_FILES).unwrap_or_default();
        let figures = result.figures.as_ref().map(report::named).into_iter().flatten();
        let batch = result.summary.as_ref().map(report::batch_figures).into_iter().flatten();
        let end = RunEnd {
            status,
            at: SystemTime::now(),
            metrics: figures.chain(batch).collect(),
            tags,
            artifacts: directory.files().into_iter().chain(answers).collect(),
        };
        Some(tracker.lock().await.finish(end, flush).await)
    }
}

/// Points of a batch, those that are known.
fn live_points(batch: &BatchProgress) -> impl Iterator<Item = (&'static str, f64)> {
    let points = [
        ("live/batch_lines", batch.lines().map(|(lines, _)| lines as f64)),
        ("live/batch_lines_answered", Some(batch.answered() as f64)),
        ("live/batch_errors", Some(batch.errors() as f64)),
        ("live/batch_lines_per_second", batch.lines_per_second()),
        ("live/batch_remaining_seconds", batch.remaining().map(|remaining| remaining.as_secs_f64())),
        ("live/batch_cost", batch.cost()),
    ];
    points.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

/// The run's name where the job gives none: the model's last name and the time.
fn default_run_name(job: &JobConfig, at: SystemTime) -> String {
    format!("{} {}", job.model_name(), clock::rfc3339(at))
}

impl Live {
    /// Records a value of the machine at the current step.
    pub fn system_metric(&self, name: &str, value: f64) {
        let step = self.step.load(Ordering::Relaxed);
        self.with(|tracker| tracker.metric(name, value, step));
    }

    /// Records progress and throughput from `registry` after each `interval`, until aborted.
    pub fn follow(&self, registry: Arc<Registry>, interval: Duration) -> JoinHandle<()> {
        let live = self.clone();
        tokio::spawn(async move {
            if live.tracker.is_none() {
                return;
            }
            let mut ticks = tokio::time::interval(interval);
            let mut before = registry.totals();
            loop {
                ticks.tick().await;
                let step = live.step.fetch_add(1, Ordering::Relaxed);
                let now = registry.totals();
                // A rate over the interval and not since the start, so that a stall shows.
                let generated = now.measure.generated_tokens - before.measure.generated_tokens;
                for (name, value) in [
                    ("live/requests_finished", now.measure.requests_finished as f64),
                    ("live/generated_tokens", now.measure.generated_tokens as f64),
                    ("live/output_tokens_per_second", generated as f64 / interval.as_secs_f64()),
                    ("live/requests_running", now.running as f64),
                    ("live/requests_waiting", now.waiting as f64),
                    ("live/kv_blocks_used", now.kv_blocks_used as f64),
                ] {
                    live.with(|tracker| tracker.metric(name, value, step));
                }
                for (name, value) in now.batch.iter().flat_map(live_points) {
                    live.with(|tracker| tracker.metric(name, value, step));
                }
                before = now;
            }
        })
    }

    fn with(&self, note: impl FnOnce(&Tracker)) {
        // Never waits: only the end of the run holds the lock for long, and a point that arrives then is of no use any more.
        if let Some(tracker) = &self.tracker
            && let Ok(tracker) = tracker.try_lock()
        {
            note(&tracker);
        }
    }
}

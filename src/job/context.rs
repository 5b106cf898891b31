//! Everything that a run carries from phase to phase, by subject. Functions take the parts that they need.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use flashjob_config::JobConfig;
use flashjob_event::Events;
use flashjob_host::gpus::Gpus;
use flashjob_mount::Mounter;
use flashjob_telemetry::{FactLog, Registry};
use flashjob_timeline::Timeline;

use super::descriptors::KeptBack;
use super::host;
use super::phases::Phases;
use super::signals::Signals;
use super::step_watch::StepWatch;
use super::tracking::Tracking;
use crate::backend::Rendezvous;
use crate::bench::{Recorder, StepTimes};
use crate::report::{Privileges, ResultsDirectory};

/// One run: its configuration and everything around it.
pub struct Context {
    /// Configuration of the job.
    pub job: JobConfig,
    /// Start of the run.
    pub started: SystemTime,
    /// Signals that end the run early.
    pub signals: Signals,
    /// Stream of facts and its observers.
    pub observability: Observability,
    /// Destinations of the result.
    pub results: Results,
    /// Devices, nodes and rights that the run computes with.
    pub resources: Resources,
}

/// The stream of facts, and the observers that a run reads again.
pub struct Observability {
    /// The stream itself; every observer below is attached to it.
    pub events: Events,
    /// Counters and levels for Prometheus, the log and MLflow.
    pub registry: Arc<Registry>,
    /// Recorder of the measured region.
    pub recorder: Arc<Recorder>,
    /// The measured region over time, for the report and the live page.
    pub timeline: Arc<Timeline>,
    /// Step times of the warm-up.
    pub step_times: Arc<StepTimes>,
    /// Watch on steps that never end.
    pub step_watch: Arc<StepWatch>,
    /// Times at which phases started.
    pub phases: Arc<Phases>,
}

/// Destinations of the result on disk and in MLflow.
pub struct Results {
    /// `results-dir`, locked for this run.
    pub directory: ResultsDirectory,
    /// The run in MLflow, where one was asked for.
    pub tracking: Tracking,
    /// File descriptors that are reserved for the result's files.
    pub descriptors: KeptBack,
}

/// Devices, nodes and rights of this process.
pub struct Resources {
    /// GPUs that this process may use, as far as NVML reports on them.
    pub gpus: Arc<Gpus>,
    /// Meeting point of the nodes that share the model, where there are several.
    pub rendezvous: Option<Arc<Rendezvous>>,
    /// Connection to the process that mounts and unmounts.
    pub mounter: Mounter,
    /// Rights that were left when the others were given up.
    pub privileges: Privileges,
    /// Set where a thread hangs in a device's driver, whose exit handlers would wait for it.
    pub is_stuck: Arc<AtomicBool>,
}

impl Context {
    /// The context of a run whose directory is open and whose log is running.
    pub fn new(
        job: JobConfig,
        started: SystemTime,
        signals: Signals,
        directory: ResultsDirectory,
        mounter: Mounter,
        privileges: Privileges,
    ) -> Self {
        // The spool is written here, so that a run which is killed while it mounts is in MLflow as well.
        let tracking = Tracking::start(&job, &directory, started, None);
        let rendezvous = |nodes| Arc::new(Rendezvous::new(nodes, signals.cancel().clone()));
        let rendezvous = job.nodes.clone().map(rendezvous);
        let resources =
            Resources { gpus: Arc::new(host::gpus()), rendezvous, mounter, privileges, is_stuck: Arc::default() };
        let results = Results { directory, tracking, descriptors: KeptBack::take() };
        let recorder = if job.workload.batch.is_some() { Recorder::of_batch() } else { Recorder::default() };
        Self {
            job,
            started,
            signals,
            observability: Observability::watching(Arc::new(Registry::new()), Arc::default(), recorder),
            results,
            resources,
        }
    }
}

impl Context {
    /// The context of one combination of the sweep that this one runs: a configuration, results and observers of its own.
    pub fn of_combination(&self, job: JobConfig, directory: ResultsDirectory) -> Self {
        let started = SystemTime::now();
        let tracking = Tracking::start(&job, &directory, started, Some(self.results.tracking.key()));
        // The reserve of the sweep is there for all of its combinations.
        let results = Results { directory, tracking, descriptors: KeptBack::default() };
        let Resources { gpus, rendezvous, mounter, privileges, is_stuck } = &self.resources;
        let resources = Resources {
            gpus: gpus.clone(),
            rendezvous: rendezvous.clone(),
            mounter: mounter.clone(),
            privileges: privileges.clone(),
            is_stuck: is_stuck.clone(),
        };
        // The live page and the sampler know one timeline. It has the last region, which is this combination's when it ends.
        let Observability { registry, timeline, .. } = &self.observability;
        let observability = Observability::watching(registry.clone(), timeline.clone(), Recorder::default());
        Self { job, started, signals: self.signals.clone(), observability, results, resources }
    }
}

impl Observability {
    /// A stream of facts whose counts go to `registry`, and whose measured region goes to `timeline` and `recorder`.
    fn watching(registry: Arc<Registry>, timeline: Arc<Timeline>, recorder: Recorder) -> Self {
        let (recorder, phases) = (Arc::new(recorder), Arc::new(Phases::default()));
        let (step_times, step_watch) = (Arc::new(StepTimes::default()), Arc::new(StepWatch::default()));
        let events = Events::to(vec![
            registry.clone(),
            recorder.clone(),
            timeline.clone(),
            step_times.clone(),
            step_watch.clone(),
            phases.clone(),
            Arc::new(FactLog::default()),
        ]);
        Self { events, registry, recorder, timeline, step_times, step_watch, phases }
    }
}

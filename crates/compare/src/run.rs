//! One run as a comparison sees it: the parts of its result that are compared, without the long ones.

use flashjob_results::{BackendSummary, Environment, RunResult, Settings, Status};

use super::figures::{self, RunFigure};

/// One run of a comparison.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name, as it was given: a path, or a place in MLflow.
    pub name: String,
    pub(super) status: Status,
    pub(super) error: Option<String>,
    /// Every request that was handed over has finished.
    pub(super) is_complete: bool,
    pub(super) flashjob_version: String,
    pub(super) settings: Settings,
    pub(super) environment: Environment,
    pub(super) backend: Option<BackendSummary>,
    pub(super) finished_requests: Option<u64>,
    pub(super) input_tokens: Option<f64>,
    pub(super) output_tokens: Option<f64>,
    pub(super) skipped_inputs: u64,
    /// Disturbances and warnings, each in a sentence.
    pub(super) remarks: Vec<String>,
    /// Regions that were measured; 0 where nothing was.
    pub(super) regions: usize,
    pub(super) figures: Vec<RunFigure>,
}

impl Run {
    /// The run called `name` that left `result`.
    pub fn new(name: String, result: RunResult) -> Self {
        Self {
            name,
            is_complete: result.measurement.as_ref().is_some_and(|measurement| measurement.complete),
            finished_requests: result.finished_requests(),
            input_tokens: result.metrics.total_input_tokens(),
            output_tokens: result.metrics.total_output_tokens(),
            regions: result.regions(),
            figures: figures::of(&result),
            status: result.status,
            error: result.error,
            flashjob_version: result.flashjob_version,
            settings: result.settings,
            environment: result.environment,
            backend: result.backend,
            skipped_inputs: result.skipped_inputs,
            remarks: result.disturbances.into_iter().chain(result.warnings).collect(),
        }
    }

    pub(super) fn figure(&self, key: &str) -> Option<&RunFigure> {
        self.figures.iter().find(|figure| figure.key == key)
    }
}

//! A run as a page shows it, read from its results directory.

use std::path::Path;

use flashjob_results::{Error, RecordedTimeline, RequestTiming, Requests, RunResult};

/// Requests whose latencies a page shows, the first of a run; a plot of more looks the same.
const MOST_REQUESTS: usize = 200_000;

/// Everything of a run that a page shows.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of the model.
    pub name: String,
    /// Content of `result.json`.
    pub result: RunResult,
    /// Timings of requests.
    pub requests: Vec<RequestTiming>,
    /// The measured region over time.
    pub timeline: Option<RecordedTimeline>,
    /// Sentences on files that could not be read, beside those of the result.
    pub notes: Vec<String>,
}

impl Run {
    /// Reads the run of the results directory `directory`. A file beside the result that is damaged leaves a note.
    ///
    /// # Errors
    /// A result that cannot be read.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        RunResult::read(&directory.join("result.json")).map(|result| Self::beside(result, directory))
    }

    /// The run that left `result` without the files beside it.
    pub fn new(result: RunResult) -> Self {
        Self { name: name(&result), result, requests: Vec::new(), timeline: None, notes: Vec::new() }
    }

    /// The run that left `result` in `directory`, where its other files are. One that is damaged leaves a note.
    pub fn beside(result: RunResult, directory: &Path) -> Self {
        // A page without a plot is better than none: the figures are those of the result alone.
        let mut notes = Vec::new();
        let timeline = RecordedTimeline::read(directory).unwrap_or_else(|error| {
            notes.push(error.to_string());
            None
        });
        let requests = requests(&directory.join("requests.jsonl")).unwrap_or_else(|error| {
            notes.push(error.to_string());
            Vec::new()
        });
        Self { requests, timeline, notes, ..Self::new(result) }
    }

    /// Sentences on what may have spoiled the figures.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let result = &self.result;
        let mut warnings: Vec<String> = result.disturbances.iter().chain(&result.warnings).cloned().collect();
        if result.failed_requests.is_some_and(|failed| failed > 0) {
            warnings.push(format!("{} requests ended with an error", result.failed_requests.unwrap_or_default()));
        }
        if result.skipped_inputs > 0 {
            warnings.push(format!("{} lines of the dataset could not be run and were left out", result.skipped_inputs));
        }
        if result.measurement.as_ref().is_some_and(|measurement| !measurement.complete) {
            warnings.push("not all requests finished: the figures are those of the part that was measured".to_owned());
        }
        let roofline = result.measurement.as_ref().and_then(|measurement| measurement.roofline.as_ref());
        warnings.extend(roofline.and_then(|roofline| roofline.unknown_because.clone()));
        warnings.extend(result.backend.iter().flat_map(|backend| backend.warnings.iter().cloned()));
        warnings.extend(self.notes.iter().cloned());
        warnings
    }
}

fn requests(path: &Path) -> Result<Vec<RequestTiming>, Error> {
    match path.exists() {
        // A run that failed early has none.
        false => Ok(Vec::new()),
        true => Requests::open(path)?.take(MOST_REQUESTS).collect(),
    }
}

/// The last name of the model's path, by which people know it.
fn name(result: &RunResult) -> String {
    let model = result.settings.get("model").unwrap_or_default();
    let last = model.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if last.is_empty() { "flashjob".to_owned() } else { last.to_owned() }
}

//! `result.json`: one self-describing document a run.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::bench::Measurement;
use flashjob_event::Phase;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Measured, with exact counts.
    Finished,
    /// Ended by an error.
    Failed,
    /// Ended by a signal.
    Killed,
}

/// How long a phase took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PhaseSeconds {
    /// Which.
    pub phase: Phase,
    /// From its start to the next one's, or to now for the last.
    pub seconds: f64,
}

/// How one input became files.
#[derive(Clone, Debug, Serialize)]
pub struct InputFacts {
    /// Where.
    pub location: String,
    /// `fuse`, `copy` or `existing`.
    pub method: String,
    /// Why this method.
    pub reason: String,
    /// The PAR with its token redacted.
    pub source: Option<String>,
}

/// Everything that is known about a run when it ends.
#[derive(Clone, Debug)]
pub struct JobResult {
    /// How it ended.
    pub status: Status,
    /// The process's exit code, as far as it is known when this is written: publishing may still turn 0 into 6.
    pub exit_code: u8,
    /// What went wrong, in a sentence.
    pub error: Option<String>,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub ended_at: String,
    /// Key, value, origin: the whole configuration, redacted.
    pub settings: Value,
    /// How inputs became files.
    pub inputs: Vec<InputFacts>,
    /// Lines or entries of the dataset that could not be run and were left out.
    pub skipped_inputs: usize,
    /// Other work of the machine while it measured, each in a sentence.
    pub disturbances: Vec<String>,
    /// What ran; `None` where it never got so far.
    pub backend: Option<Value>,
    /// Host, processor, memory, versions.
    pub environment: Value,
    /// How long each phase took.
    pub phases: Vec<PhaseSeconds>,
    /// Whole or partial; `None` where nothing was measured.
    pub measurement: Option<Measurement>,
    /// [`super::figures()`] of the measurement.
    pub figures: Vec<(String, f64)>,
}

/// Raised when a key of `result.json` changes its meaning.
const SCHEMA_VERSION: u32 = 1;

impl JobResult {
    /// The document. A complete measurement also has the keys that `vllm bench throughput --output-json` writes
    /// (vLLM, `vllm/benchmarks/throughput.py`), at the top, so that scripts made for it read this file.
    pub fn to_json(&self) -> Value {
        let mut document = Map::new();
        document.insert("schema_version".to_owned(), json!(SCHEMA_VERSION));
        document.insert("flashjob_version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        document.insert("status".to_owned(), json!(self.status));
        document.insert("exit_code".to_owned(), json!(self.exit_code));
        document.insert("error".to_owned(), json!(self.error));
        if let Some(measurement) = self.measurement.as_ref().filter(|measurement| measurement.complete) {
            let requests = measurement.answered_requests();
            let tokens = measurement.total_input_tokens() + measurement.total_output_tokens();
            let elapsed = measurement.elapsed_seconds;
            document.insert("elapsed_time".to_owned(), json!(elapsed));
            document.insert("num_requests".to_owned(), json!(requests));
            document.insert("total_num_tokens".to_owned(), json!(tokens));
            document.insert("requests_per_second".to_owned(), json!(requests as f64 / elapsed));
            document.insert("tokens_per_second".to_owned(), json!(tokens as f64 / elapsed));
        }
        let figures: Map<String, Value> =
            self.figures.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        document.insert("started_at".to_owned(), json!(self.started_at));
        document.insert("ended_at".to_owned(), json!(self.ended_at));
        document.insert("metrics".to_owned(), Value::Object(figures));
        document.insert("measurement".to_owned(), json!(self.measurement));
        document.insert("phases".to_owned(), json!(self.phases));
        document.insert("inputs".to_owned(), json!(self.inputs));
        document.insert("skipped_inputs".to_owned(), json!(self.skipped_inputs));
        document.insert("disturbances".to_owned(), json!(self.disturbances));
        let failed = self.measurement.as_ref().map(Measurement::failed_requests);
        document.insert("failed_requests".to_owned(), json!(failed));
        document.insert("backend".to_owned(), json!(self.backend));
        document.insert("settings".to_owned(), self.settings.clone());
        document.insert("environment".to_owned(), self.environment.clone());
        Value::Object(document)
    }
}

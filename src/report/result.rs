//! `result.json`: one self-describing document a run.

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use flashjob_config::Setting;
use flashjob_results::{InputReport, PhaseSeconds, SCHEMA_VERSION, Status, Summary};

use super::batch_answers::BatchReport;
use super::environment::Environment;
use super::figures::Figures;
use super::prefix_caching::PrefixCaching;
use super::repeats::RepeatsReport;
use crate::backend::BackendReport;
use crate::bench::{Accuracy, Measurement, WarmUpReport};

/// Everything that is known about a run when it ends.
#[derive(Clone, Debug)]
pub struct JobResult {
    /// Status at the end.
    pub status: Status,
    /// The process's exit code, as far as it is known when this is written: publishing may still turn 0 into 6.
    pub exit_code: u8,
    /// A sentence on the failure.
    pub error: Option<String>,
    /// Start of the run, RFC 3339 in UTC.
    pub started_at: String,
    /// End of the run, RFC 3339 in UTC.
    pub ended_at: String,
    /// The whole configuration, redacted.
    pub settings: Vec<Setting>,
    /// Report on each mounted input.
    pub inputs: Vec<InputReport>,
    /// Lines or entries of the dataset that could not be run and were left out.
    pub skipped_inputs: usize,
    /// Other work of the machine while it measured, each in a sentence.
    pub disturbances: Vec<String>,
    /// Report of the backend; `None` where it was never loaded.
    pub backend: Option<BackendReport>,
    /// The machine and the rights of the process.
    pub environment: Environment,
    /// Warnings about a workload that is too small, or settings that left the machine idle.
    pub warnings: Vec<String>,
    /// Course of an automatic warm-up.
    pub warm_up: Option<WarmUpReport>,
    /// Each region with its figures; `None` where there was one.
    pub repeats: Option<RepeatsReport>,
    /// Correct answers, where the dataset has any.
    pub accuracy: Option<Accuracy>,
    /// Answers of a batch, those of earlier attempts included.
    pub batch: Option<BatchReport>,
    /// Whether equal beginnings of prompts were computed once, and why.
    pub prefix_caching: PrefixCaching,
    /// Content of `summary.json`, of a batch.
    pub summary: Option<Summary>,
    /// Duration of each phase.
    pub phases: Vec<PhaseSeconds>,
    /// Whole or partial; `None` where nothing was measured.
    pub measurement: Option<Measurement>,
    /// Figures of the measurement; `None` where nothing was measured.
    pub figures: Option<Figures>,
}

/// The content of `result.json`, key by key.
// The order of the fields is that of the keys in the file.
#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    flashjob_version: &'static str,
    status: Status,
    exit_code: u8,
    error: Option<&'a str>,
    /// At the top, so that scripts made for vLLM's benchmark read this file.
    #[serde(flatten)]
    vllm_throughput: Option<VllmThroughput>,
    started_at: &'a str,
    ended_at: &'a str,
    metrics: Metrics<'a>,
    measurement: Option<&'a Measurement>,
    phases: &'a [PhaseSeconds],
    inputs: &'a [InputReport],
    skipped_inputs: usize,
    disturbances: &'a [String],
    warnings: &'a [String],
    warm_up: Option<WarmUpReport>,
    repeats: Option<&'a RepeatsReport>,
    accuracy: Option<Accuracy>,
    batch: Option<BatchReport>,
    prefix_caching: &'a PrefixCaching,
    failed_requests: Option<usize>,
    backend: Option<&'a BackendReport>,
    #[serde(serialize_with = "by_key")]
    settings: &'a [Setting],
    environment: &'a Environment,
}

/// A setting without its key.
#[derive(Serialize)]
struct SettingValue<'a> {
    value: &'a str,
    origin: String,
}

/// Settings as an object of `key: {value, origin}`.
fn by_key<S: Serializer>(settings: &[Setting], serializer: S) -> Result<S::Ok, S::Error> {
    let entries = settings.iter().map(|setting| {
        let Setting { key, value, origin } = setting;
        (key, SettingValue { value, origin: origin.to_string() })
    });
    serializer.collect_map(entries)
}

/// Figures, or an empty object where there are none.
#[derive(Serialize)]
struct Metrics<'a> {
    #[serde(flatten)]
    figures: Option<&'a Figures>,
}

/// The keys that `vllm bench throughput --output-json` writes (vLLM, `vllm/benchmarks/throughput.py`).
#[derive(Serialize)]
struct VllmThroughput {
    elapsed_time: f64,
    num_requests: usize,
    total_num_tokens: u64,
    requests_per_second: f64,
    tokens_per_second: f64,
}

impl VllmThroughput {
    fn of(measurement: &Measurement) -> Self {
        let requests = measurement.answered_requests();
        let tokens = measurement.total_input_tokens() + measurement.total_output_tokens();
        let elapsed = measurement.elapsed_seconds;
        Self {
            elapsed_time: elapsed,
            num_requests: requests,
            total_num_tokens: tokens,
            requests_per_second: requests as f64 / elapsed,
            tokens_per_second: tokens as f64 / elapsed,
        }
    }
}

impl JobResult {
    /// The document. Only a complete measurement has the keys of vLLM's benchmark.
    pub fn to_json(&self) -> Value {
        let measurement = self.measurement.as_ref();
        let document = Document {
            schema_version: SCHEMA_VERSION,
            flashjob_version: env!("CARGO_PKG_VERSION"),
            status: self.status,
            exit_code: self.exit_code,
            error: self.error.as_deref(),
            vllm_throughput: measurement.filter(|measurement| measurement.complete).map(VllmThroughput::of),
            started_at: &self.started_at,
            ended_at: &self.ended_at,
            metrics: Metrics { figures: self.figures.as_ref() },
            measurement,
            phases: &self.phases,
            inputs: &self.inputs,
            skipped_inputs: self.skipped_inputs,
            disturbances: &self.disturbances,
            warnings: &self.warnings,
            warm_up: self.warm_up,
            repeats: self.repeats.as_ref(),
            accuracy: self.accuracy,
            batch: self.batch,
            prefix_caching: &self.prefix_caching,
            failed_requests: measurement.map(Measurement::failed_requests),
            backend: self.backend.as_ref(),
            settings: &self.settings,
            environment: &self.environment,
        };
        // Keys are texts, and every value has a form in JSON: a number that is none becomes null.
        json!(document)
    }
}

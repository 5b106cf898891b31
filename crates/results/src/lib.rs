//! The files that a run leaves in its results directory, read back with limits: `result.json`, `requests.jsonl`, `timeline.json`,
//! `sweep.json` of a sweep and `summary.json` of a batch. The values that a run writes and others read have their types here.
//!
//! It does not know how anything was measured, nor what readers make of it. Files may come from anywhere: size, number and depth
//! of what they hold are limited, and each refusal is a sentence that names the file.

mod backend;
mod binned_sample;
mod bins;
mod confidence_interval;
mod details;
mod distribution;
mod environment;
mod error;
mod figure;
mod limits;
mod measurement;
mod metrics;
mod open;
mod repeats;
mod request_sums;
mod request_timing;
mod requests;
mod run;
mod run_result;
mod settings;
mod summary;
mod sweep;
mod timeline;
mod token_clock;

pub use backend::BackendSummary;
pub use binned_sample::BinnedSample;
pub use bins::Bins;
pub use confidence_interval::{CONFIDENCE, ConfidenceInterval, Moments};
pub use details::Details;
pub use distribution::{Distribution, Percentiles};
pub use environment::Environment;
pub use error::Error;
pub use figure::{Better, Figure, figure};
pub use limits::{LARGEST_RESULT_BYTES, MOST_COMBINATIONS};
pub use measurement::{LatencyDistributions, Limits, MeasuredRoofline, MeasurementSummary, PrefixCache};
pub use metrics::Metrics;
pub use open::{Stored, open};
pub use repeats::{Region, Repeats, StoppedBy};
pub use request_sums::{LatencyBins, RequestTotals};
pub use request_timing::RequestTiming;
pub use requests::Requests;
pub use run::{InputReport, PhaseSeconds, Status};
pub use run_result::{RunResult, SCHEMA_VERSION};
pub use settings::{Setting, Settings};
pub use summary::{AnswersSummary, JobSummary, LineCounts, ShardCounts, Summary, TokenCounts};
pub use sweep::{Combination, CombinationStatus, Sweep};
pub use timeline::{RecordedTimeline, Slice, StepKind, StepsAlike};
pub use token_clock::TokenClock;

//! The measured region, as it stands in a result.

use serde::{Deserialize, Serialize};

use super::bins::Bins;
use super::distribution::Distribution;
use super::request_sums::LatencyBins;
use super::token_clock::TokenClock;

/// The measured region; values that a version of flashjob does not write are missing.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct MeasurementSummary {
    /// Every request that was handed over has finished.
    pub complete: bool,
    /// Duration of the region.
    pub elapsed_seconds: f64,
    /// Latencies over all requests.
    #[serde(default)]
    pub latencies: LatencyDistributions,
    /// The latencies of a batch, which has no record of each request.
    #[serde(default)]
    pub latency_bins: Option<LatencyBins>,
    /// Times that a running request lost its blocks.
    #[serde(default)]
    pub preemptions: u64,
    /// Forward passes.
    #[serde(default)]
    pub steps: u64,
    /// Operations and bytes of all steps beside the machine's limits.
    #[serde(default)]
    pub roofline: Option<MeasuredRoofline>,
    /// Energy of the GPUs.
    #[serde(default)]
    pub energy_joules: Option<f64>,
    /// The times between two tokens of a request.
    #[serde(default)]
    pub inter_token_bins: Bins,
    /// Tokens by second of the wall clock.
    #[serde(default)]
    pub token_clock: Option<TokenClock>,
    /// Prompt tokens saved by the prefix cache.
    #[serde(default)]
    pub prefix_cache: Option<PrefixCache>,
}

/// Latencies in seconds; `None` where no request has the figure.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LatencyDistributions {
    /// TTFT: queued to first token.
    pub time_to_first_token_seconds: Option<Distribution>,
    /// TPOT: mean time between a request's tokens.
    pub time_per_output_token_seconds: Option<Distribution>,
    /// ITL: each time between two tokens of a request.
    pub inter_token_latency_seconds: Option<Distribution>,
    /// E2E: queued to text complete.
    pub end_to_end_seconds: Option<Distribution>,
    /// Queued to first place in a step.
    pub queue_seconds: Option<Distribution>,
}

/// Operations and bytes of all steps.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct MeasuredRoofline {
    /// Limits of the machine; `None` where they were not measured.
    #[serde(default)]
    pub limits: Option<Limits>,
    /// Floating-point operations that all steps needed.
    pub flops: f64,
    /// Bytes that all steps needed.
    pub bytes: f64,
    /// The least that all steps could have taken.
    #[serde(default)]
    pub limit_seconds: Option<f64>,
    /// The part of it in steps that operations bound.
    #[serde(default)]
    pub compute_bound_seconds: Option<f64>,
    /// The least that all steps could have taken with one operation after the other.
    #[serde(default)]
    pub serial_limit_seconds: Option<f64>,
    /// Reason for an unknown roofline although limits were measured.
    #[serde(default)]
    pub unknown_because: Option<String>,
}

/// Limits of a machine, as measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Floating-point operations of a large matrix product.
    pub flops_per_second: f64,
    /// Bytes between memory and processors.
    pub bytes_per_second: f64,
}

/// Prompt tokens that were found in the prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct PrefixCache {
    /// Prompt tokens of all requests that got a place in a step.
    pub prompt_tokens: u64,
    /// Prompt tokens that were found.
    pub hit_tokens: u64,
}

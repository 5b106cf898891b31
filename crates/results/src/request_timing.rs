//! The moments of one request: a line of `requests.jsonl`.

use flashjob_event::FinishReason;
use serde::{Deserialize, Serialize};

/// One request of one region. Times count from the moment it was queued; `None` has not happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RequestTiming {
    /// Its region, counted from 0, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<u32>,
    /// Its place in the workload.
    pub request: u32,
    /// Length of its prompt.
    pub prompt_tokens: u32,
    /// Tokens it produced.
    pub output_tokens: u32,
    /// Until its first place in a step.
    pub queue_seconds: Option<f64>,
    /// Until its first token.
    pub time_to_first_token_seconds: Option<f64>,
    /// Until its last token.
    pub last_token_seconds: Option<f64>,
    /// Until its text was complete.
    pub end_to_end_seconds: Option<f64>,
    /// Times it lost its blocks.
    pub preemptions: u32,
    /// Reason for its end.
    pub finish_reason: Option<FinishReason>,
}

impl RequestTiming {
    /// Tells that it ended with an error.
    pub fn failed(&self) -> bool {
        self.finish_reason == Some(FinishReason::Error)
    }

    /// E2E of a request that was answered: one that broke off has none.
    pub fn answered_seconds(&self) -> Option<f64> {
        self.end_to_end_seconds.filter(|_| !self.failed())
    }

    /// Mean time between its tokens (TPOT): undefined for fewer than two.
    pub fn time_per_output_token_seconds(&self) -> Option<f64> {
        let (first, last) = (self.time_to_first_token_seconds?, self.last_token_seconds?);
        // The first token belongs to TTFT: n tokens have n - 1 gaps.
        (self.output_tokens > 1).then(|| (last - first) / f64::from(self.output_tokens - 1))
    }
}

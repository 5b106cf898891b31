//! Any number of requests in bounded memory: totals, and latencies in bins. What has no record of each request has these.

use std::iter::Sum;

use serde::{Deserialize, Serialize};

use super::binned_sample::BinnedSample;
use super::request_timing::RequestTiming;

/// Numbers of requests and of their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestTotals {
    /// Requests that were handed over.
    pub requests: u64,
    /// Requests that have ended, also with an error.
    pub finished: u64,
    /// Requests that ended with an error.
    pub failed: u64,
    /// Prompt tokens of those that have ended.
    pub input_tokens: u64,
    /// Generated tokens of all.
    pub output_tokens: u64,
}

impl RequestTotals {
    /// Counts in a request.
    pub fn add(&mut self, request: &RequestTiming) {
        // As for a list of requests: what was not answered has no prompt that was paid for.
        let has_ended = request.end_to_end_seconds.is_some();
        self.requests += 1;
        self.finished += u64::from(has_ended);
        self.failed += u64::from(request.failed());
        self.input_tokens += if has_ended { u64::from(request.prompt_tokens) } else { 0 };
        self.output_tokens += u64::from(request.output_tokens);
    }
}

impl<'a> FromIterator<&'a RequestTiming> for RequestTotals {
    fn from_iter<I: IntoIterator<Item = &'a RequestTiming>>(requests: I) -> Self {
        let mut totals = Self::default();
        requests.into_iter().for_each(|request| totals.add(request));
        totals
    }
}

impl Sum for RequestTotals {
    fn sum<I: Iterator<Item = Self>>(totals: I) -> Self {
        totals.fold(Self::default(), |sum, one| Self {
            requests: sum.requests + one.requests,
            finished: sum.finished + one.finished,
            failed: sum.failed + one.failed,
            input_tokens: sum.input_tokens + one.input_tokens,
            output_tokens: sum.output_tokens + one.output_tokens,
        })
    }
}

/// Latencies of requests in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyBins {
    /// TTFT: queued to first token.
    pub time_to_first_token_seconds: BinnedSample,
    /// TPOT: mean time between a request's tokens.
    pub time_per_output_token_seconds: BinnedSample,
    /// E2E: queued to text complete, over answered requests.
    pub end_to_end_seconds: BinnedSample,
    /// Queued to first place in a step.
    pub queue_seconds: BinnedSample,
}

impl LatencyBins {
    /// Counts in a request.
    pub fn add(&mut self, request: &RequestTiming) {
        for (sample, seconds) in [
            (&mut self.time_to_first_token_seconds, request.time_to_first_token_seconds),
            (&mut self.time_per_output_token_seconds, request.time_per_output_token_seconds()),
            (&mut self.end_to_end_seconds, request.answered_seconds()),
            (&mut self.queue_seconds, request.queue_seconds),
        ] {
            seconds.into_iter().for_each(|seconds| sample.add(seconds));
        }
    }

    /// Counts in what others have counted.
    pub fn merge(&mut self, other: &Self) {
        self.time_to_first_token_seconds.merge(&other.time_to_first_token_seconds);
        self.time_per_output_token_seconds.merge(&other.time_per_output_token_seconds);
        self.end_to_end_seconds.merge(&other.end_to_end_seconds);
        self.queue_seconds.merge(&other.queue_seconds);
    }
}

//! The measured region in numbers, and the check that its counts are exact.

use std::collections::BTreeMap;
use std::iter::Sum;

use serde::Serialize;

use flashjob_results::{Bins, Distribution, LatencyBins, RequestTiming, RequestTotals, TokenClock};

use super::Roofline;
use super::expectation::Expectation;
use super::occupancy::{Occupancy, SteadyWindow};
use crate::backend::{Completion, Request};

/// The measured region in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Every request that was handed over has finished.
    pub complete: bool,
    /// From handing over the first request to the text of the last one; to the last event while incomplete.
    pub elapsed_seconds: f64,
    /// Numbers of requests and of their tokens.
    pub totals: RequestTotals,
    /// Over all requests.
    pub latencies: Latencies,
    /// What percentiles are made of.
    pub percentiles_of: PercentilesOf,
    /// The latencies of a batch, in a form that adds up over replicas; `None` where each request has a record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_bins: Option<LatencyBins>,
    /// Times that a running request lost its blocks.
    pub preemptions: u64,
    /// Forward passes.
    pub steps: u64,
    /// Operations and bytes of all steps beside the machine's limits.
    pub roofline: Roofline,
    /// Energy of the GPUs; `None` where there are none, or they do not report it.
    pub energy_joules: Option<f64>,
    /// The times between two tokens of a request, in a form that adds up over replicas.
    pub inter_token_bins: Bins,
    /// Tokens by second of the wall clock.
    pub token_clock: TokenClock,
    /// Prompt tokens saved by the prefix cache; `None` where it is off.
    pub prefix_cache: Option<PrefixCacheHits>,
    /// Tokens that the requests asked for.
    pub requested_output_tokens: u64,
    /// The part in which the batch was full; `None` where it never was for more than a moment.
    pub steady_window: Option<SteadyWindow>,
    /// Levels of the batch. Summed up in the steady window and in warnings.
    #[serde(skip)]
    pub occupancy: Occupancy,
    /// Each time between two tokens of a request, in seconds; none of a batch.
    #[serde(skip)]
    pub inter_token_seconds: Vec<f64>,
    /// Each request, in order; of a batch those that ended first. Written to a file of its own, not into the summary.
    #[serde(skip)]
    pub requests: Vec<RequestTiming>,
}

/// What percentiles of latencies are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PercentilesOf {
    /// Each value: they are exact.
    Values,
    /// Counts in bins, as a batch may have any number of requests: they are known to 0.5 %.
    Bins,
}

/// Prompt tokens that were found in the prefix cache and not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PrefixCacheHits {
    /// Prompt tokens of all requests that got a place in a step.
    pub prompt_tokens: u64,
    /// Prompt tokens that were found.
    pub hit_tokens: u64,
}

impl Sum for PrefixCacheHits {
    fn sum<I: Iterator<Item = Self>>(hits: I) -> Self {
        hits.fold(Self::default(), |sum, hits| Self {
            prompt_tokens: sum.prompt_tokens + hits.prompt_tokens,
            hit_tokens: sum.hit_tokens + hits.hit_tokens,
        })
    }
}

/// Latencies in seconds; `None` where no request has the figure.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latencies {
    /// TTFT: queued to first token, over requests.
    pub time_to_first_token_seconds: Option<Distribution>,
    /// TPOT: mean time between a request's tokens, over requests with at least two.
    pub time_per_output_token_seconds: Option<Distribution>,
    /// ITL: each time between two tokens of a request, over all such pairs.
    pub inter_token_latency_seconds: Option<Distribution>,
    /// E2E: queued to text complete, over answered requests.
    pub end_to_end_seconds: Option<Distribution>,
    /// Queued to first place in a step, over requests.
    pub queue_seconds: Option<Distribution>,
}

impl Latencies {
    /// Sums up `requests` and the times between tokens.
    pub fn of(requests: &[RequestTiming], inter_token_seconds: Vec<f64>) -> Self {
        let over =
            |figure: fn(&RequestTiming) -> Option<f64>| Distribution::of(requests.iter().filter_map(figure).collect());
        Self {
            time_to_first_token_seconds: over(|request| request.time_to_first_token_seconds),
            time_per_output_token_seconds: over(RequestTiming::time_per_output_token_seconds),
            inter_token_latency_seconds: Distribution::of(inter_token_seconds),
            end_to_end_seconds: over(RequestTiming::answered_seconds),
            queue_seconds: over(|request| request.queue_seconds),
        }
    }

    /// Percentiles of `bins`, and of the times between tokens.
    pub fn of_bins(bins: &LatencyBins, inter_token_latency_seconds: Option<Distribution>) -> Self {
        Self {
            time_to_first_token_seconds: bins.time_to_first_token_seconds.distribution(),
            time_per_output_token_seconds: bins.time_per_output_token_seconds.distribution(),
            inter_token_latency_seconds,
            end_to_end_seconds: bins.end_to_end_seconds.distribution(),
            queue_seconds: bins.queue_seconds.distribution(),
        }
    }
}

impl Measurement {
    /// All of `regions` as one measurement: amounts and durations add up, and latencies are over all requests. `None` for none.
    pub fn together(regions: &[&Self]) -> Option<Self> {
        let (&first, rest) = regions.split_first()?;
        if rest.is_empty() {
            return Some(first.clone());
        }
        let sum = |amount: fn(&Self) -> u64| regions.iter().copied().map(amount).sum();
        let requests: Vec<RequestTiming> = (0..)
            .zip(regions)
            .flat_map(|(region, measurement)| {
                measurement
                    .requests
                    .iter()
                    .map(move |request| RequestTiming { region: Some(region), ..request.clone() })
            })
            .collect();
        let inter_token_seconds: Vec<f64> =
            regions.iter().flat_map(|region| region.inter_token_seconds.iter().copied()).collect();
        let mut inter_token_bins = Bins::default();
        inter_token_seconds.iter().for_each(|&seconds| inter_token_bins.add(seconds));
        Some(Self {
            complete: regions.iter().all(|region| region.complete),
            elapsed_seconds: regions.iter().map(|region| region.elapsed_seconds).sum(),
            totals: regions.iter().map(|region| region.totals).sum(),
            latencies: Latencies::of(&requests, inter_token_seconds.clone()),
            percentiles_of: PercentilesOf::Values,
            latency_bins: None,
            preemptions: sum(|region| region.preemptions),
            steps: sum(|region| region.steps),
            roofline: Roofline::together(regions.iter().map(|region| region.roofline)),
            energy_joules: regions.iter().map(|region| region.energy_joules).sum(),
            inter_token_bins,
            token_clock: TokenClock::together(regions.iter().map(|region| &region.token_clock)),
            prefix_cache: regions.iter().map(|region| region.prefix_cache).sum(),
            requested_output_tokens: sum(|region| region.requested_output_tokens),
            steady_window: SteadyWindow::together(regions.iter().map(|region| region.steady_window)),
            // Each region is judged by itself; they are alike.
            occupancy: first.occupancy.clone(),
            inter_token_seconds,
            requests,
        })
    }

    /// Output tokens divided by the duration; 0 where no time has passed.
    pub fn output_tokens_per_second(&self) -> f64 {
        if self.elapsed_seconds > 0.0 { self.total_output_tokens() as f64 / self.elapsed_seconds } else { 0.0 }
    }

    /// Requests that ended with an error.
    pub fn failed_requests(&self) -> usize {
        self.totals.failed as usize
    }

    /// Requests that finished, and not with an error.
    pub fn answered_requests(&self) -> usize {
        self.finished_requests() - self.failed_requests()
    }

    /// Requests that finished, also with an error.
    pub fn finished_requests(&self) -> usize {
        self.totals.finished as usize
    }

    /// Prompt tokens of finished requests.
    pub fn total_input_tokens(&self) -> u64 {
        self.totals.input_tokens
    }

    /// Tokens produced, also by requests that have not finished.
    pub fn total_output_tokens(&self) -> u64 {
        self.totals.output_tokens
    }

    /// Checks that exactly what was asked for has happened: every request once, every token counted by the events
    /// is in the completion, and of those as many as the request asks for: exactly where it ignores stop tokens or
    /// ended by length, fewer where it ended with an error, at most otherwise.
    ///
    /// # Errors
    /// The first deviation, in words.
    pub fn verify(&self, requests: &[Request], completions: &[Completion]) -> Result<(), String> {
        if completions.len() != requests.len() || self.finished_requests() != requests.len() {
            return Err(format!(
                "{} requests were handed over, {} finished by the clock and {} by the backend",
                requests.len(),
                self.finished_requests(),
                completions.len()
            ));
        }
        let by_id: BTreeMap<_, _> = completions.iter().map(|completion| (completion.id, completion)).collect();
        let mut in_order: Vec<&Request> = requests.iter().collect();
        in_order.sort_by_key(|request| request.id);
        // Both are in the order of request numbers.
        for (request, timing) in in_order.into_iter().zip(&self.requests) {
            let Some(completion) = by_id.get(&request.id) else {
                return Err(format!("request {} has no completion", request.id.0));
            };
            let produced = completion.tokens.len();
            if timing.request != request.id.0
                || timing.output_tokens as usize != produced
                || timing.prompt_tokens as usize != request.prompt.len()
            {
                return Err(format!(
                    "request {} has {} prompt tokens and {produced} output tokens, but events counted {} and {}",
                    request.id.0,
                    request.prompt.len(),
                    timing.prompt_tokens,
                    timing.output_tokens
                ));
            }
            if timing.finish_reason != Some(completion.reason) {
                return Err(format!(
                    "request {} ended by {}, but events say otherwise",
                    request.id.0,
                    completion.reason.name()
                ));
            }
            Expectation::of(request).check(completion)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use flashjob_config::Sampling;
    use flashjob_event::{Event, Fact, FinishReason, Observer, Phase, RequestId};

    use super::*;
    use crate::backend::{RequestError, Seed};
    use crate::bench::Recorder;

    const REQUEST: RequestId = RequestId(0);

    fn request() -> Request {
        Request {
            id: REQUEST,
            prompt: vec![1],
            max_tokens: 2,
            ignore_eos: false,
            sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: None },
            options: None,
            choice: 0,
            seed: Seed::Job(0),
            text: None,
        }
    }

    /// A request for two tokens that gets `produced` of them, a second each, and ends so.
    fn measured(produced: u32, reason: FinishReason) -> Measurement {
        let (recorder, start) = (Recorder::default(), Instant::now());
        let observe = |seconds, fact| recorder.observe(&Event { at: start + Duration::from_secs(seconds), fact });
        observe(0, Fact::PhaseStarted(Phase::Measure));
        observe(0, Fact::RequestQueued { request: REQUEST, prompt_tokens: 1 });
        (0..produced).for_each(|token| observe(1 + u64::from(token), Fact::TokenGenerated { request: REQUEST, token }));
        observe(9, Fact::RequestFinished { request: REQUEST, output_tokens: produced, reason });
        recorder.measurement()
    }

    #[test]
    fn only_a_stop_or_an_error_lets_a_request_have_fewer_tokens() {
        use FinishReason::{Error, Length, Stop};
        let verified = |produced: u32, reason, ignore_eos| {
            let request = Request { ignore_eos, ..request() };
            let error = (reason == Error).then(|| RequestError::Sentence(String::new()));
            let tokens = (0..produced).collect();
            let completion = Completion { id: REQUEST, tokens, text: String::new(), logprobs: None, reason, error };
            measured(produced, reason).verify(&[request], &[completion])
        };
        for (produced, reason, ignore_eos, good) in [
            (2, Length, false, true),
            (1, Length, false, false),
            (1, Length, true, false),
            (1, Stop, false, true),
            (1, Stop, true, false),
            (1, Error, false, true),
            (0, Error, true, true),
            (2, Error, false, false),
            (3, Error, false, false),
        ] {
            assert_eq!(verified(produced, reason, ignore_eos).is_ok(), good, "{produced} {reason:?} {ignore_eos}");
        }
        // Events and completions must agree on the reason.
        let request = request();
        let completion = Completion {
            id: REQUEST,
            tokens: vec![0],
            text: String::new(),
            logprobs: None,
            reason: Error,
            error: None,
        };
        let deviation = measured(1, Stop).verify(&[request], &[completion]).unwrap_err();
        assert_eq!(deviation, "request 0 ended by error, but events say otherwise");
    }

    #[test]
    fn a_request_that_failed_is_no_answer_and_its_tokens_count() {
        let failed = measured(1, FinishReason::Error);
        assert_eq!((failed.failed_requests(), failed.answered_requests(), failed.total_output_tokens()), (1, 0, 1));
        assert!(failed.latencies.time_to_first_token_seconds.is_some());
        assert!(failed.latencies.end_to_end_seconds.is_none());
        assert_eq!(measured(2, FinishReason::Length).answered_requests(), 1);
    }
}

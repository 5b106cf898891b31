//! Metrics of requests, tokens and steps, kept apart by region: what is measured and what is not.

use prometheus::{Histogram, IntCounter, exponential_buckets};

use super::registrar::Registrar;
use flashjob_event::FinishReason;

/// Region of a fact. Only facts in [`flashjob_event::Phase::Measure`] are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    WarmUp,
    Measure,
}

impl Region {
    pub(super) const ALL: [Region; 2] = [Region::WarmUp, Region::Measure];

    /// Value of the label `phase`.
    fn label(self) -> &'static str {
        match self {
            Region::WarmUp => "warm_up",
            Region::Measure => "measure",
        }
    }
}

/// The metrics of one region; each is one labelled child, looked up once so that counting needs no search.
pub(super) struct Serving {
    pub(super) queued: IntCounter,
    pub(super) scheduled: IntCounter,
    finished_length: IntCounter,
    finished_stop: IntCounter,
    finished_error: IntCounter,
    pub(super) preemptions: IntCounter,
    pub(super) prefix_queries: IntCounter,
    pub(super) prefix_hits: IntCounter,
    pub(super) prompt_tokens: IntCounter,
    pub(super) generated_tokens: IntCounter,
    pub(super) prefilled_tokens: IntCounter,
    pub(super) decoded_tokens: IntCounter,
    pub(super) needed_flops: IntCounter,
    pub(super) needed_bytes: IntCounter,
    pub(super) queue_time: Histogram,
    pub(super) prefill_time: Histogram,
    pub(super) decode_time: Histogram,
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token_latency: Histogram,
    pub(super) end_to_end_latency: Histogram,
    pub(super) request_prompt_tokens: Histogram,
    pub(super) request_generated_tokens: Histogram,
    pub(super) step_seconds: Histogram,
    pub(super) step_tokens: Histogram,
    pub(super) step_decode_sequences: Histogram,
}

impl Serving {
    /// Registers the families and takes each region's children, in the order of [`Region::ALL`].
    pub(super) fn register(registrar: &Registrar) -> [Self; 2] {
        let counter = |name, help| registrar.counters(name, help, &["phase"]);
        let queued = counter("flashjob_requests_queued_total", "Requests that entered the waiting queue.");
        let scheduled = counter("flashjob_requests_scheduled_total", "Requests that got their first place in a step.");
        let finished = registrar.counters(
            "flashjob_requests_finished_total",
            "Requests that are over, by why they stopped; `error`: they failed.",
            &["phase", "reason"],
        );
        let preemptions = counter("flashjob_preemptions_total", "Times that a running request lost its KV blocks.");
        let prefix_queries =
            counter("flashjob_prefix_cache_query_tokens_total", "Prompt tokens looked for in the prefix cache.");
        let prefix_hits = counter(
            "flashjob_prefix_cache_hit_tokens_total",
            "Prompt tokens found in the prefix cache, and not computed again.",
        );
        let prompt = counter("flashjob_prompt_tokens_total", "Prompt tokens of requests that produced a token.");
        let generated = counter("flashjob_generated_tokens_total", "Tokens that requests produced.");
        let computed = registrar.counters(
            "flashjob_computed_tokens_total",
            "Tokens computed in steps, recomputation after a preemption included, by stage.",
            &["phase", "stage"],
        );

        let flops = counter("flashjob_step_flops_total", "Floating-point operations that steps needed at least.");
        let bytes = counter(
            "flashjob_step_memory_bytes_total",
            "Bytes of weights, keys and values that steps needed at least.",
        );

        let seconds = |name, help| registrar.histograms(name, help, &["phase"], request_seconds());
        let queue_time = seconds("flashjob_queue_time_seconds", "From queued to the first place in a step.");
        let prefill_time =
            seconds("flashjob_prefill_time_seconds", "From the first place in a step to the first token.");
        let decode_time = seconds("flashjob_decode_time_seconds", "From the first token to the last.");
        let first_token = seconds("flashjob_time_to_first_token_seconds", "From queued to the first token.");
        let end_to_end = seconds("flashjob_end_to_end_latency_seconds", "From queued to answered, its text included.");

        let steps = |name, help| registrar.histograms(name, help, &["phase"], step_seconds());
        let inter_token = steps("flashjob_inter_token_latency_seconds", "Between two tokens of one request.");
        let step = steps("flashjob_step_duration_seconds", "One forward pass over a batch.");

        let sizes = |name, help| registrar.histograms(name, help, &["phase"], powers_of_two());
        let prompts = sizes("flashjob_request_prompt_tokens", "Prompt tokens of a finished request.");
        let outputs = sizes("flashjob_request_generated_tokens", "Tokens that a finished request produced.");
        let step_tokens = sizes("flashjob_step_tokens", "Tokens computed in one step, prefill and decode together.");
        let sequences = sizes("flashjob_step_decode_sequences", "Sequences that decoded a token in one step.");

        Region::ALL.map(|region| {
            let phase = region.label();
            Self {
                queued: queued.with_label_values(&[phase]),
                scheduled: scheduled.with_label_values(&[phase]),
                finished_length: finished.with_label_values(&[phase, FinishReason::Length.name()]),
                finished_stop: finished.with_label_values(&[phase, FinishReason::Stop.name()]),
                finished_error: finished.with_label_values(&[phase, FinishReason::Error.name()]),
                preemptions: preemptions.with_label_values(&[phase]),
                prefix_queries: prefix_queries.with_label_values(&[phase]),
                prefix_hits: prefix_hits.with_label_values(&[phase]),
                prompt_tokens: prompt.with_label_values(&[phase]),
                generated_tokens: generated.with_label_values(&[phase]),
                prefilled_tokens: computed.with_label_values(&[phase, "prefill"]),
                decoded_tokens: computed.with_label_values(&[phase, "decode"]),
                needed_flops: flops.with_label_values(&[phase]),
                needed_bytes: bytes.with_label_values(&[phase]),
                queue_time: queue_time.with_label_values(&[phase]),
                prefill_time: prefill_time.with_label_values(&[phase]),
                decode_time: decode_time.with_label_values(&[phase]),
                time_to_first_token: first_token.with_label_values(&[phase]),
                inter_token_latency: inter_token.with_label_values(&[phase]),
                end_to_end_latency: end_to_end.with_label_values(&[phase]),
                request_prompt_tokens: prompts.with_label_values(&[phase]),
                request_generated_tokens: outputs.with_label_values(&[phase]),
                step_seconds: step.with_label_values(&[phase]),
                step_tokens: step_tokens.with_label_values(&[phase]),
                step_decode_sequences: sequences.with_label_values(&[phase]),
            }
        })
    }

    pub(super) fn finished(&self, reason: FinishReason) -> &IntCounter {
        match reason {
            FinishReason::Length => &self.finished_length,
            FinishReason::Stop => &self.finished_stop,
            FinishReason::Error => &self.finished_error,
        }
    }

    pub(super) fn finished_requests(&self) -> u64 {
        self.finished_length.get() + self.finished_stop.get() + self.failed_requests()
    }

    pub(super) fn failed_requests(&self) -> u64 {
        self.finished_error.get()
    }
}

/// Bounds from 1 ms to 1000 s, three a decade: the queue of a job lasts minutes, that of a server milliseconds.
fn request_seconds() -> Vec<f64> {
    decades(-3, 3)
}

/// Bounds from 100 µs to 10 s, three a decade.
fn step_seconds() -> Vec<f64> {
    decades(-4, 1)
}

/// 1, 2.5 and 5 times each power of ten from `10^first` up to and including `10^last`.
fn decades(first: i32, last: i32) -> Vec<f64> {
    let mut bounds: Vec<f64> = (first..last)
        .flat_map(|exponent| [1.0, 2.5, 5.0].map(|factor| format!("{factor}e{exponent}")))
        // By way of text, so that a bound reads 0.0025 and not 0.0025000000000000005.
        .filter_map(|bound| bound.parse().ok())
        .collect();
    bounds.push(10f64.powi(last));
    bounds
}

/// Powers of two from 1 to 65536.
fn powers_of_two() -> Vec<f64> {
    exponential_buckets(1.0, 2.0, 17).unwrap_or_default()
}

//! Facts become numbers: an observer that counts, and renders what it counted as Prometheus text.
//!
//! Counting happens on the thread that states a fact, the engine's above all: a token costs one
//! uncontended lock and a few atomic additions, and allocates nothing. Names are our own
//! (`flashjob_*`, `docs/METRICS.md`): vLLM's hold a `:`, which is reserved for recording rules.

mod batch;
mod family;
mod gpus;
mod in_flight;
mod machine;
mod onlookers;
mod phases;
mod registrar;
mod serving;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use prometheus::core::Metric;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, TextEncoder};

use self::batch::Batch;
use self::gpus::GpuFamilies;
use self::in_flight::{InFlight, Requests};
use self::machine::Machine;
use self::onlookers::Onlookers;
use self::phases::Phases;
use self::registrar::Registrar;
use self::serving::{Region, Serving};
use super::BatchProgress;
use super::host::Sample;
use flashjob_event::{Event, Fact, FinishReason, Needs, Observer, Phase, RequestId};

/// Counts facts, renders Prometheus text and returns [`Totals`].
pub struct Registry {
    families: prometheus::Registry,
    phases: Phases,
    requests: Requests,
    serving: [Serving; 2],
    running: IntGauge,
    waiting: IntGauge,
    kv_blocks: IntGauge,
    kv_blocks_used: IntGauge,
    kv_block_tokens: IntGauge,
    weights_read: IntCounter,
    weights_total: IntGauge,
    bucket_read: IntCounter,
    bucket_written: IntCounter,
    bucket_retries: IntCounterVec,
    limit_flops: IntGauge,
    limit_bytes: IntGauge,
    machine: Machine,
    gpus: GpuFamilies,
    onlookers: Onlookers,
    /// Progress of a job that answers a batch.
    batch: OnceLock<Batch>,
}

/// Counters of one region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that entered the waiting queue.
    pub requests_queued: u64,
    /// Requests that have ended.
    pub requests_finished: u64,
    /// Requests that have ended with an error.
    pub requests_failed: u64,
    /// Prompt tokens of requests that have produced a token.
    pub prompt_tokens: u64,
    /// Number of generated tokens.
    pub generated_tokens: u64,
    /// Number of times that a request lost its blocks.
    pub preemptions: u64,
    /// Number of forward passes.
    pub steps: u64,
}

/// Values for a progress bar or live chart, read at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// The current phase; `None` before the first.
    pub phase: Option<Phase>,
    /// Duration of the current phase so far.
    pub phase_elapsed: Duration,
    /// Everything before the measured region.
    pub warm_up: Counts,
    /// The measured region.
    pub measure: Counts,
    /// Progress of the batch; `None` where the job answers none.
    pub batch: Option<BatchProgress>,
    /// Sequences running after the last step.
    pub running: u64,
    /// Sequences in the waiting queue.
    pub waiting: u64,
    /// Blocks in the KV cache.
    pub kv_blocks: u64,
    /// Blocks in use after the last step.
    pub kv_blocks_used: u64,
    /// Bytes of weights in memory so far.
    pub weights_read_bytes: u64,
    /// Bytes of weights in total.
    pub weights_total_bytes: u64,
    /// Body bytes received from the bucket.
    pub bucket_read_bytes: u64,
    /// Bytes written to the bucket.
    pub bucket_written_bytes: u64,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// A registry with all values at zero.
    pub fn new() -> Self {
        let families = prometheus::Registry::new();
        let registrar = Registrar(&families);
        let build = registrar.gauges("flashjob_build_info", "1, labelled with what this program is.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let bucket_retries = registrar.counters(
            "flashjob_bucket_retries_total",
            "Bucket requests that were tried again, by what went wrong.",
            &["reason"],
        );
        // Created in advance, so that `rate()` sees the first retry as an increase from zero.
        for reason in ["throttled", "server_error", "timeout", "reset", "short_body"] {
            bucket_retries.with_label_values(&[reason]);
        }
        Self {
            phases: Phases::new(&registrar),
            requests: Requests::default(),
            serving: Serving::register(&registrar),
            running: registrar.gauge("flashjob_requests_running", "Sequences running after the last step."),
            waiting: registrar.gauge("flashjob_requests_waiting", "Requests in the waiting queue."),
            kv_blocks: registrar.gauge("flashjob_kv_cache_blocks", "Blocks in the KV cache."),
            kv_blocks_used: registrar.gauge("flashjob_kv_cache_used_blocks", "KV blocks in use after the last step."),
            kv_block_tokens: registrar.gauge("flashjob_kv_cache_block_tokens", "Tokens that one KV block holds."),
            weights_read: registrar.counter("flashjob_weights_read_bytes_total", "Bytes of weights read into memory."),
            weights_total: registrar.gauge("flashjob_weights_bytes", "Bytes of weights that the model has."),
            bucket_read: registrar.counter("flashjob_bucket_read_bytes_total", "Body bytes received from the bucket."),
            bucket_written: registrar.counter("flashjob_bucket_written_bytes_total", "Bytes sent to the bucket."),
            bucket_retries,
            limit_flops: registrar.gauge(
                "flashjob_limit_flops_per_second",
                "Operations of a large matrix product, as measured before the run.",
            ),
            limit_bytes: registrar.gauge(
                "flashjob_limit_memory_bytes_per_second",
                "Bytes between memory and processors, as measured before the run.",
            ),
            machine: Machine::register(&registrar),
            gpus: GpuFamilies::register(&registrar),
            onlookers: Onlookers::register(&registrar),
            batch: OnceLock::new(),
            families,
        }
    }

    /// All metrics in Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        // Durations of the present phase are computed at scrape time only: nothing needs to tick.
        let now = Instant::now();
        self.phases.refresh(now);
        self.batch_progress(now);
        let mut text = String::new();
        // An error leaves the families that were rendered before it, which is better than an empty page.
        if let Err(error) = TextEncoder::new().encode_utf8(&self.families.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be rendered in full (a bug: please report)");
        }
        text
    }

    /// The present values.
    pub fn totals(&self) -> Totals {
        let now = Instant::now();
        let (phase, phase_elapsed) = self.phases.current(now).unzip();
        Totals {
            phase,
            phase_elapsed: phase_elapsed.unwrap_or_default(),
            warm_up: counts(self.region(Region::WarmUp)),
            measure: counts(self.region(Region::Measure)),
            batch: self.batch_progress(now),
            running: level(&self.running),
            waiting: level(&self.waiting),
            kv_blocks: level(&self.kv_blocks),
            kv_blocks_used: level(&self.kv_blocks_used),
            weights_read_bytes: self.weights_read.get(),
            weights_total_bytes: level(&self.weights_total),
            bucket_read_bytes: self.bucket_read.get(),
            bucket_written_bytes: self.bucket_written.get(),
        }
    }

    fn batch_progress(&self, now: Instant) -> Option<BatchProgress> {
        let batch = self.batch.get()?;
        Some(batch.refresh(self.phases.elapsed(now), self.phases.spent_in(Phase::Measure, now)))
    }

    /// Latencies of the measured region by name: upper ends of bins in seconds, and the values in each.
    pub(crate) fn measured_latencies(&self) -> [(&'static str, Vec<(f64, u64)>); 4] {
        let measured = self.region(Region::Measure);
        [
            ("TTFT", bins(&measured.time_to_first_token)),
            ("ITL", bins(&measured.inter_token_latency)),
            ("E2E", bins(&measured.end_to_end_latency)),
            ("queue", bins(&measured.queue_time)),
        ]
    }

    /// Shows `sample` in place of the previous one.
    pub fn set_sample(&self, sample: Sample) {
        self.gpus.set(sample.gpus.clone());
        self.machine.set(sample);
    }

    /// Counts a request for a page of the metrics port.
    pub fn page_requested(&self) {
        self.onlookers.requested();
    }

    /// Requests per second for pages of the metrics port while the region was measured, where they were so many that answering
    /// them took processor time from the measurement.
    pub fn disturbing_requests_per_second(&self) -> Option<f64> {
        self.onlookers.disturbing_requests_per_second()
    }

    fn region(&self, region: Region) -> &Serving {
        &self.serving[region as usize]
    }

    /// Region for facts without a known request.
    fn current_region(&self) -> Region {
        if self.phases.measuring() { Region::Measure } else { Region::WarmUp }
    }

    fn phase_started(&self, phase: Phase, at: Instant) {
        self.phases.start(phase, at);
        self.onlookers.phase_started(phase, at);
        if matches!(phase, Phase::Publish | Phase::Linger) {
            // Requests still in flight were abandoned, and gauges would keep their last values for ever.
            self.requests.clear();
            self.running.set(0);
            self.waiting.set(0);
            self.kv_blocks_used.set(0);
        }
    }

    fn token_generated(&self, request: RequestId, at: Instant) {
        let region = self.requests.update(request, |state| {
            let serving = self.region(state.region);
            match state.last_token.replace(at) {
                Some(previous) => serving.inter_token_latency.observe(seconds(previous, at)),
                None => {
                    state.first_token = Some(at);
                    serving.time_to_first_token.observe(seconds(state.queued, at));
                    // Counted with the first token, not when queued: a request that fails before it has used no prompt.
                    serving.prompt_tokens.inc_by(state.prompt_tokens.into());
                    if let Some(scheduled) = state.scheduled {
                        serving.prefill_time.observe(seconds(scheduled, at));
                    }
                }
            }
            state.region
        });
        self.region(region.unwrap_or_else(|| self.current_region())).generated_tokens.inc();
    }
}

impl Observer for Registry {
    fn observe(&self, event: &Event) {
        let at = event.at;
        match event.fact {
            Fact::PhaseStarted(phase) => self.phase_started(phase, at),
            Fact::BucketRead { bytes } => self.bucket_read.inc_by(bytes),
            Fact::BucketWritten { bytes } => self.bucket_written.inc_by(bytes),
            Fact::BucketRetried { reason } => self.bucket_retries.with_label_values(&[reason]).inc(),
            Fact::UploadOpened { .. } => {}
            Fact::BatchStarted { price_per_hour } => {
                self.batch.get_or_init(|| Batch::register(&Registrar(&self.families), price_per_hour));
            }
            Fact::BatchSized { lines, is_estimate } => {
                self.batch.get().into_iter().for_each(|batch| batch.sized(lines, is_estimate));
            }
            Fact::LinesAnswered { kind, lines } => {
                let is_measuring = self.phases.measuring();
                self.batch.get().into_iter().for_each(|batch| batch.answered(kind, lines, is_measuring));
            }
            Fact::LinesAnsweredEarlier { kind, lines } => {
                self.batch.get().into_iter().for_each(|batch| batch.answered_earlier(kind, lines));
            }
            Fact::LimitsMeasured { flops_per_second, bytes_per_second } => {
                // Measured twice; a value that something else disturbed is too low, so the larger one is kept.
                self.limit_flops.set(self.limit_flops.get().max(flops_per_second as i64));
                self.limit_bytes.set(self.limit_bytes.get().max(bytes_per_second as i64));
            }
            Fact::StepNeeded { needs, .. } => {
                let Needs { flops, bytes } = needs.total();
                let serving = self.region(self.current_region());
                serving.needed_flops.inc_by(flops as u64);
                serving.needed_bytes.inc_by(bytes as u64);
            }
            Fact::WeightsRead { bytes, total_bytes } => {
                self.weights_read.inc_by(bytes);
                self.weights_total.set(gauge_value(total_bytes));
            }
            Fact::EngineReady { kv_blocks, block_tokens, .. } => {
                self.kv_blocks.set(gauge_value(kv_blocks));
                self.kv_block_tokens.set(gauge_value(block_tokens));
            }
            Fact::RequestQueued { request, prompt_tokens } => {
                let region = self.current_region();
                self.region(region).queued.inc();
                self.waiting.inc();
                let state = InFlight {
                    region,
                    prompt_tokens,
                    queued: at,
                    scheduled: None,
                    first_token: None,
                    last_token: None,
                };
                self.requests.insert(request, state);
            }
            Fact::RequestScheduled { request } => {
                let region = self.requests.update(request, |state| {
                    // A preempted request is scheduled again, but has waited in the queue only once.
                    if state.scheduled.is_none() {
                        state.scheduled = Some(at);
                        self.region(state.region).queue_time.observe(seconds(state.queued, at));
                    }
                    state.region
                });
                self.region(region.unwrap_or_else(|| self.current_region())).scheduled.inc();
            }
            Fact::PrefixSearched { request, prompt_tokens, hit_tokens } => {
                let region = self.requests.update(request, |state| state.region);
                let serving = self.region(region.unwrap_or_else(|| self.current_region()));
                serving.prefix_queries.inc_by(prompt_tokens.into());
                serving.prefix_hits.inc_by(hit_tokens.into());
            }
            Fact::RequestPreempted { request } => {
                let region = self.requests.update(request, |state| state.region);
                self.region(region.unwrap_or_else(|| self.current_region())).preemptions.inc();
            }
            // The most frequent fact: its path takes one lock of one shard.
            Fact::TokenGenerated { request, token: _ } => self.token_generated(request, at),
            Fact::RequestFinished { request, output_tokens, reason } => {
                // Removed even if it failed: the map must not grow over the run.
                let state = self.requests.remove(request);
                let region = state.as_ref().map_or_else(|| self.current_region(), |state| state.region);
                let serving = self.region(region);
                serving.finished(reason).inc();
                serving.request_generated_tokens.observe(output_tokens.into());
                // A request that was never queued, such as one of another run: it has no times.
                let Some(state) = state else { return };
                serving.request_prompt_tokens.observe(state.prompt_tokens.into());
                // A failed request has no meaningful latency, and short ones would improve the mean.
                if reason != FinishReason::Error {
                    serving.end_to_end_latency.observe(seconds(state.queued, at));
                }
                if let (Some(first), Some(last)) = (state.first_token, state.last_token) {
                    serving.decode_time.observe(seconds(first, last));
                }
            }
            // Counted when it ends.
            Fact::StepStarted { .. } => {}
            Fact::StepFinished {
                duration, prefill_tokens, decode_tokens, running, waiting, kv_blocks_used, ..
            } => {
                let serving = self.region(self.current_region());
                serving.step_seconds.observe(duration.as_secs_f64());
                serving.step_tokens.observe((prefill_tokens.saturating_add(decode_tokens)) as f64);
                serving.step_decode_sequences.observe(decode_tokens as f64);
                serving.prefilled_tokens.inc_by(prefill_tokens as u64);
                serving.decoded_tokens.inc_by(decode_tokens as u64);
                self.running.set(gauge_value(running));
                self.waiting.set(gauge_value(waiting));
                self.kv_blocks_used.set(gauge_value(kv_blocks_used));
            }
        }
    }
}

fn counts(serving: &Serving) -> Counts {
    Counts {
        requests_queued: serving.queued.get(),
        requests_finished: serving.finished_requests(),
        requests_failed: serving.failed_requests(),
        prompt_tokens: serving.prompt_tokens.get(),
        generated_tokens: serving.generated_tokens.get(),
        preemptions: serving.preemptions.get(),
        steps: serving.step_seconds.get_sample_count(),
    }
}

/// Upper ends of the bins of `histogram`, and the values in each.
fn bins(histogram: &Histogram) -> Vec<(f64, u64)> {
    let metric = histogram.metric();
    let buckets = metric.get_histogram().get_bucket().iter();
    // Prometheus counts in each bin what is in those before it, too.
    let mut below = 0;
    let own = buckets.map(|bucket| {
        let count = bucket.cumulative_count().saturating_sub(below);
        below = bucket.cumulative_count();
        (bucket.upper_bound(), count)
    });
    own.collect()
}

/// Seconds from `start` to `end`; zero where facts of two threads overlap.
fn seconds(start: Instant, end: Instant) -> f64 {
    end.saturating_duration_since(start).as_secs_f64()
}

fn gauge_value(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn level(gauge: &IntGauge) -> u64 {
    gauge.get().try_into().unwrap_or(0)
}

#[cfg(test)]
mod tests;

//! Listens to the measured region and keeps the moments that matter of each request.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};

use flashjob_event::{Event, Fact, FinishReason, Observer, Phase, RequestId};
use flashjob_results::{BinnedSample, LatencyBins, RequestTiming, RequestTotals, TokenClock};

use super::measurement::{Latencies, Measurement, PercentilesOf, PrefixCacheHits};
use super::occupancy::Occupancy;
use super::roofline::{MachineLimits, NeededWork};

/// Requests of a batch whose timings are kept one by one, for the lists and plots of a report: those that ended first.
pub const MOST_TIMINGS_OF_A_BATCH: usize = 10_000;

/// Records the measured region; everything outside it passes by unseen.
#[derive(Default)]
pub struct Recorder {
    keep: Keep,
    region: Mutex<Region>,
    limits: Mutex<Option<MachineLimits>>,
}

/// What is kept of requests that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Keep {
    /// Each of them, and each time between tokens.
    #[default]
    Each,
    /// Sums and bins: a batch has any number of requests.
    Sums,
}

#[derive(Default)]
struct Region {
    keep: Keep,
    open: bool,
    /// When the first request was handed over; until then, when the region was opened.
    started: Option<Instant>,
    last_finish: Option<Instant>,
    last_event: Option<Instant>,
    /// All requests, or those that have not ended.
    requests: BTreeMap<RequestId, Track>,
    /// Requests that are no longer among them.
    ended: EndedRequests,
    inter_token_seconds: Vec<f64>,
    inter_token: BinnedSample,
    preemptions: u64,
    steps: u64,
    needed: NeededWork,
    prefix_cache: Option<PrefixCacheHits>,
    token_clock: TokenClock,
    occupancy: Occupancy,
}

/// Requests of a batch that have ended.
#[derive(Default)]
struct EndedRequests {
    totals: RequestTotals,
    bins: LatencyBins,
    first: Vec<RequestTiming>,
}

/// One request while it runs.
struct Track {
    prompt_tokens: u32,
    queued: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    output_tokens: u32,
    preemptions: u32,
    finished: Option<(Instant, FinishReason)>,
}

impl Recorder {
    /// A recorder of a batch, whose memory does not grow with the number of requests.
    pub fn of_batch() -> Self {
        Self { keep: Keep::Sums, ..Self::default() }
    }

    /// The measurement so far: whole after the region has run to its end, partial before.
    pub fn measurement(&self) -> Measurement {
        let limits = *self.limits.lock();
        self.lock().measurement(limits)
    }

    // An observer never panics while it holds the lock, and a half-noted event is better than none.
    fn lock(&self) -> MutexGuard<'_, Region> {
        self.region.lock()
    }

    fn note(&self, region: &mut Region, event: &Event) {
        match event.fact {
            Fact::PhaseStarted(Phase::Measure) => {
                let token_clock = TokenClock::starting(SystemTime::now());
                let started = Some(event.at);
                *region = Region { keep: self.keep, open: true, started, token_clock, ..Region::default() };
            }
            // Before anything else is measured, and after it.
            Fact::LimitsMeasured { flops_per_second, bytes_per_second } => {
                let measured = MachineLimits { flops_per_second, bytes_per_second };
                let mut limits = self.limits.lock();
                *limits = Some(limits.map_or(measured, |earlier| earlier.higher(measured)));
            }
            Fact::PhaseStarted(_) => region.open = false,
            _ if region.open => region.note(event),
            _ => {}
        }
    }
}

impl Observer for Recorder {
    fn observe(&self, event: &Event) {
        self.note(&mut self.lock(), event);
    }

    fn observe_all(&self, events: &[Event]) {
        let mut region = self.lock();
        events.iter().for_each(|event| self.note(&mut region, event));
    }
}

impl Region {
    fn note(&mut self, event: &Event) {
        let at = event.at;
        self.last_event = Some(at);
        match event.fact {
            Fact::RequestQueued { request, prompt_tokens } => {
                // Handing requests to a child process takes time that is not the engine's. The clock starts with the first
                // one that is queued.
                if self.requests.is_empty() && self.ended.totals.requests == 0 {
                    self.started = Some(at);
                    self.token_clock = TokenClock::starting(SystemTime::now());
                }
                self.requests.insert(
                    request,
                    Track {
                        prompt_tokens,
                        queued: at,
                        scheduled: None,
                        first_token: None,
                        last_token: None,
                        output_tokens: 0,
                        preemptions: 0,
                        finished: None,
                    },
                );
            }
            Fact::RequestScheduled { request } => {
                if let Some(track) = self.requests.get_mut(&request) {
                    // A request that was preempted is scheduled again; its time in the queue ended with the first time.
                    track.scheduled.get_or_insert(at);
                }
            }
            Fact::PrefixSearched { prompt_tokens, hit_tokens, .. } => {
                let hits = self.prefix_cache.get_or_insert_default();
                hits.prompt_tokens += u64::from(prompt_tokens);
                hits.hit_tokens += u64::from(hit_tokens);
            }
            Fact::RequestPreempted { request } => {
                self.preemptions += 1;
                if let Some(track) = self.requests.get_mut(&request) {
                    track.preemptions += 1;
                }
            }
            Fact::TokenGenerated { request, .. } => {
                if let Some(started) = self.started {
                    let seconds = at.duration_since(started).as_secs_f64();
                    self.token_clock.tick(seconds);
                    self.occupancy.token(seconds);
                }
                if let Some(track) = self.requests.get_mut(&request) {
                    track.output_tokens += 1;
                    track.first_token.get_or_insert(at);
                    if let Some(previous) = track.last_token.replace(at) {
                        let seconds = at.duration_since(previous).as_secs_f64();
                        // Eight bytes for each token of a batch would be more than its answers.
                        if self.keep == Keep::Each {
                            self.inter_token_seconds.push(seconds);
                        }
                        self.inter_token.add(seconds);
                    }
                }
            }
            Fact::RequestFinished { request, reason, .. } => {
                self.last_finish = Some(at);
                if let Some(track) = self.requests.get_mut(&request) {
                    track.finished = Some((at, reason));
                }
                // Its record would stay for the whole batch.
                if self.keep == Keep::Sums
                    && let Some(track) = self.requests.remove(&request)
                {
                    self.ended.add(track.timing(request));
                }
            }
            Fact::StepNeeded { needs, .. } => self.needed.add(&needs),
            Fact::StepFinished { running, waiting, kv_blocks_used, .. } => {
                self.steps += 1;
                if let Some(started) = self.started {
                    self.occupancy.step(at.duration_since(started).as_secs_f64(), running, waiting, kv_blocks_used);
                }
            }
            _ => {}
        }
    }

    fn measurement(&self, limits: Option<MachineLimits>) -> Measurement {
        let since_start = |end: Option<Instant>| match (self.started, end) {
            (Some(start), Some(end)) => end.duration_since(start),
            _ => Duration::ZERO,
        };
        let mut requests: Vec<RequestTiming> = self.requests.iter().map(|(id, track)| track.timing(*id)).collect();
        let totals: RequestTotals = [self.ended.totals, requests.iter().collect()].into_iter().sum();
        let complete = totals.requests > 0 && totals.finished == totals.requests;
        // A partial region ends with its last event, as the end of unfinished requests is unknown.
        let elapsed = since_start(if complete { self.last_finish } else { self.last_event });
        let inter_token_seconds = self.inter_token_seconds.clone();
        let (latencies, percentiles_of, latency_bins) = match self.keep {
            Keep::Each => (Latencies::of(&requests, inter_token_seconds.clone()), PercentilesOf::Values, None),
            Keep::Sums => {
                let bins = self.ended.bins.clone();
                (Latencies::of_bins(&bins, self.inter_token.distribution()), PercentilesOf::Bins, Some(bins))
            }
        };
        // Those under way are in the totals; a list that changes its length with them would be no use.
        if self.keep == Keep::Sums {
            requests.clone_from(&self.ended.first);
            requests.sort_by_key(|request| request.request);
        }
        Measurement {
            complete,
            elapsed_seconds: elapsed.as_secs_f64(),
            totals,
            latencies,
            percentiles_of,
            latency_bins,
            preemptions: self.preemptions,
            steps: self.steps,
            energy_joules: None,
            roofline: self.needed.under(limits, elapsed.as_secs_f64()),
            inter_token_bins: self.inter_token.bins().clone(),
            token_clock: self.token_clock.clone(),
            prefix_cache: self.prefix_cache,
            // Known to those who made the requests.
            requested_output_tokens: 0,
            steady_window: self.occupancy.steady_window(elapsed.as_secs_f64()),
            occupancy: self.occupancy.clone(),
            inter_token_seconds,
            requests,
        }
    }
}

impl EndedRequests {
    fn add(&mut self, timing: RequestTiming) {
        self.totals.add(&timing);
        self.bins.add(&timing);
        if self.first.len() < MOST_TIMINGS_OF_A_BATCH {
            self.first.push(timing);
        }
    }
}

impl Track {
    fn timing(&self, request: RequestId) -> RequestTiming {
        let since_queued = |at: Option<Instant>| at.map(|at| at.duration_since(self.queued).as_secs_f64());
        RequestTiming {
            region: None,
            request: request.0,
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            queue_seconds: since_queued(self.scheduled),
            time_to_first_token_seconds: since_queued(self.first_token),
            last_token_seconds: since_queued(self.last_token),
            end_to_end_seconds: since_queued(self.finished.map(|(at, _)| at)),
            preemptions: self.preemptions,
            finish_reason: self.finished.map(|(_, reason)| reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` requests of two tokens each, of which two run at a time.
    fn observed(recorder: &Recorder, count: u32) -> Measurement {
        let start = Instant::now();
        let at = |milliseconds: u32, fact| {
            recorder.observe(&Event { at: start + Duration::from_millis(milliseconds.into()), fact });
        };
        at(0, Fact::PhaseStarted(Phase::Measure));
        for number in 0..count {
            let request = RequestId(number);
            at(number, Fact::RequestQueued { request, prompt_tokens: 3 });
            at(number + 1, Fact::RequestScheduled { request });
            at(number + 2, Fact::TokenGenerated { request, token: 0 });
            at(number + 5, Fact::TokenGenerated { request, token: 0 });
            let reason = if number % 7 == 3 { FinishReason::Error } else { FinishReason::Length };
            at(number + 6, Fact::RequestFinished { request, output_tokens: 2, reason });
        }
        recorder.measurement()
    }

    #[test]
    fn sums_of_a_batch_are_those_of_its_requests() {
        let each = observed(&Recorder::default(), 1000);
        let sums = observed(&Recorder::of_batch(), 1000);
        assert_eq!(
            (each.totals, each.complete, each.elapsed_seconds),
            (sums.totals, sums.complete, sums.elapsed_seconds)
        );
        assert_eq!(
            sums.totals,
            RequestTotals { requests: 1000, finished: 1000, failed: 143, input_tokens: 3000, output_tokens: 2000 }
        );
        assert_eq!(each.requests.len(), sums.requests.len());
        assert!(sums.inter_token_seconds.is_empty());
        let of = |measurement: &Measurement| {
            let latencies = measurement.latencies.clone();
            [
                latencies.time_to_first_token_seconds,
                latencies.time_per_output_token_seconds,
                latencies.inter_token_latency_seconds,
                latencies.end_to_end_seconds,
                latencies.queue_seconds,
            ]
            .map(Option::unwrap)
        };
        for (exact, found) in of(&each).into_iter().zip(of(&sums)) {
            assert_eq!((exact.count, exact.min, exact.max), (found.count, found.min, found.max));
            assert!((exact.mean / found.mean - 1.0).abs() < 1e-9 && (exact.p90 / found.p90 - 1.0).abs() < 0.006);
        }
    }

    #[test]
    fn timings_of_a_batch_are_limited_and_its_totals_are_not() {
        let recorder = Recorder::of_batch();
        let count = MOST_TIMINGS_OF_A_BATCH as u32 + 500;
        let measurement = observed(&recorder, count);
        assert_eq!(measurement.requests.len(), MOST_TIMINGS_OF_A_BATCH);
        assert_eq!(measurement.totals.finished, u64::from(count));
        assert!(recorder.lock().requests.is_empty());
    }
}

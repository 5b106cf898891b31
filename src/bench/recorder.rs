//! Listens to the measured region and keeps the moments that matter of each request.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};

use flashjob_event::{Event, Fact, FinishReason, Observer, Phase, RequestId};
use flashjob_results::{Bins, RequestTiming, TokenClock};

use super::measurement::{Latencies, Measurement, PrefixCacheHits};
use super::occupancy::Occupancy;
use super::roofline::{MachineLimits, Needs};

/// Records the measured region; everything outside it passes by unseen.
#[derive(Default)]
pub struct Recorder {
    region: Mutex<Region>,
    limits: Mutex<Option<MachineLimits>>,
}

#[derive(Default)]
struct Region {
    open: bool,
    /// When the first request was handed over; until then, when the region was opened.
    started: Option<Instant>,
    last_finish: Option<Instant>,
    last_event: Option<Instant>,
    requests: BTreeMap<RequestId, Track>,
    inter_token_seconds: Vec<f64>,
    inter_token_bins: Bins,
    preemptions: u64,
    steps: u64,
    needs: Needs,
    prefix_cache: Option<PrefixCacheHits>,
    token_clock: TokenClock,
    occupancy: Occupancy,
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
    /// The measurement so far: whole after the region has run to its end, partial before.
    pub fn measurement(&self) -> Measurement {
        let limits = *self.limits.lock();
        self.lock().measurement(limits)
    }

    // An observer never panics while it holds the lock, and a half-noted event is better than none.
    fn lock(&self) -> MutexGuard<'_, Region> {
        self.region.lock()
    }
}

impl Observer for Recorder {
    fn observe(&self, event: &Event) {
        let mut region = self.lock();
        match event.fact {
            Fact::PhaseStarted(Phase::Measure) => {
                let token_clock = TokenClock::starting(SystemTime::now());
                *region = Region { open: true, started: Some(event.at), token_clock, ..Region::default() };
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

impl Region {
    fn note(&mut self, event: &Event) {
        let at = event.at;
        self.last_event = Some(at);
        match event.fact {
            Fact::RequestQueued { request, prompt_tokens } => {
                // Handing requests to a child process takes time that is not the engine's. The clock starts with the first
                // one that is queued.
                if self.requests.is_empty() {
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
                        self.inter_token_seconds.push(seconds);
                        self.inter_token_bins.add(seconds);
                    }
                }
            }
            Fact::RequestFinished { request, reason, .. } => {
                self.last_finish = Some(at);
                if let Some(track) = self.requests.get_mut(&request) {
                    track.finished = Some((at, reason));
                }
            }
            Fact::StepNeeded { flops, bytes } => self.needs.add(flops, bytes),
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
        let complete = !self.requests.is_empty() && self.requests.values().all(|track| track.finished.is_some());
        // A partial region ends with its last event, as the end of unfinished requests is unknown.
        let elapsed = since_start(if complete { self.last_finish } else { self.last_event });
        let requests: Vec<RequestTiming> = self.requests.iter().map(|(id, track)| track.timing(*id)).collect();
        Measurement {
            complete,
            elapsed_seconds: elapsed.as_secs_f64(),
            latencies: Latencies::of(&requests, self.inter_token_seconds.clone()),
            preemptions: self.preemptions,
            steps: self.steps,
            energy_joules: None,
            roofline: self.needs.under(limits, elapsed.as_secs_f64()),
            inter_token_bins: self.inter_token_bins.clone(),
            token_clock: self.token_clock.clone(),
            prefix_cache: self.prefix_cache,
            // Known to those who made the requests.
            requested_output_tokens: 0,
            steady_window: self.occupancy.steady_window(elapsed.as_secs_f64()),
            occupancy: self.occupancy.clone(),
            inter_token_seconds: self.inter_token_seconds.clone(),
            requests,
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

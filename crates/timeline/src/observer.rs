//! Observer of facts. It works on the thread that states them: a token costs one uncontended lock and an addition.

use std::time::Instant;

use flashjob_event::{Event, Fact, Observer, Phase};
use flashjob_results::{Limits, RecordedTimeline, SCHEMA_VERSION, StepKind};
use parking_lot::Mutex;

use crate::slices::{Slices, Sums};
use crate::steps::Steps;

/// Records the measured region; the last one where there are several.
#[derive(Default)]
pub struct Timeline {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    region: Option<Region>,
    is_open: bool,
    kv_blocks: Option<u64>,
    limits: Option<Limits>,
}

struct Region {
    started: Instant,
    has_requests: bool,
    elapsed_seconds: f64,
    slices: Slices,
    steps: Steps,
    /// Operations and bytes of the step whose end comes next.
    needed: Option<(f64, f64)>,
}

impl Region {
    fn starting(at: Instant) -> Self {
        Self {
            started: at,
            has_requests: false,
            elapsed_seconds: 0.0,
            slices: Slices::default(),
            steps: Steps::default(),
            needed: None,
        }
    }

    fn slice(&mut self, at: Instant) -> &mut Sums {
        let seconds = at.saturating_duration_since(self.started).as_secs_f64();
        self.elapsed_seconds = self.elapsed_seconds.max(seconds);
        self.slices.at(seconds)
    }

    fn note(&mut self, at: Instant, fact: &Fact) {
        match *fact {
            // The clock starts with the first request, as that of the measurement does.
            Fact::RequestQueued { .. } if !self.has_requests => {
                *self = Self { has_requests: true, ..Self::starting(at) };
            }
            Fact::TokenGenerated { .. } => self.slice(at).output_tokens += 1,
            Fact::RequestFinished { .. } => self.slice(at).finished_requests += 1,
            // Its duration is in the next fact of the same thread.
            Fact::StepNeeded { flops, bytes } => self.needed = Some((flops, bytes)),
            Fact::StepFinished { duration, prefill_tokens, decode_tokens, running, waiting, kv_blocks_used } => {
                let seconds = duration.as_secs_f64();
                let slice = self.slice(at);
                slice.prefill_tokens += prefill_tokens as u64;
                slice.decode_tokens += decode_tokens as u64;
                slice.steps += 1;
                slice.step_seconds += seconds;
                slice.running += running as f64;
                slice.waiting += waiting as f64;
                slice.kv_blocks_used += kv_blocks_used as f64;
                let kind = match (prefill_tokens, decode_tokens) {
                    (_, 0) => StepKind::Prefill,
                    (0, _) => StepKind::Decode,
                    _ => StepKind::Mixed,
                };
                if let Some((flops, bytes)) = self.needed.take() {
                    self.steps.add(kind, flops, bytes, seconds);
                }
            }
            _ => {}
        }
    }
}

impl Timeline {
    /// Counts in a sample of the power that all GPUs together draw.
    pub fn power(&self, at: Instant, watts: f64) {
        let mut state = self.state.lock();
        // Samples come from a thread of their own, also after the region.
        let is_open = state.is_open;
        if let Some(region) = state.region.as_mut().filter(|_| is_open && watts.is_finite()) {
            let slice = region.slice(at);
            slice.power_samples += 1;
            slice.power_watts += watts;
        }
    }

    /// The region so far; `None` before it has begun.
    pub fn recorded(&self) -> Option<RecordedTimeline> {
        let (slices, recorded) = {
            let state = self.state.lock();
            let region = state.region.as_ref().filter(|region| region.has_requests)?;
            let recorded = RecordedTimeline {
                schema_version: SCHEMA_VERSION,
                elapsed_seconds: region.elapsed_seconds,
                slice_seconds: 0.0,
                slices: Vec::new(),
                kv_blocks: state.kv_blocks,
                limits: state.limits,
                steps: region.steps.recorded(),
            };
            (region.slices.clone(), recorded)
        };
        // Outside of the lock, for which the engine's thread would wait.
        let (slice_seconds, slices) = slices.recorded();
        Some(RecordedTimeline { slice_seconds, slices, ..recorded })
    }
}

impl Observer for Timeline {
    fn observe(&self, event: &Event) {
        let mut state = self.state.lock();
        match event.fact {
            Fact::PhaseStarted(phase) => {
                state.is_open = phase == Phase::Measure;
                if state.is_open {
                    state.region = Some(Region::starting(event.at));
                }
            }
            Fact::EngineReady { kv_blocks, .. } => state.kv_blocks = Some(kv_blocks as u64),
            // Measured twice, and whatever else runs on a machine only lowers them.
            Fact::LimitsMeasured { flops_per_second, bytes_per_second } => {
                let earlier = state.limits.unwrap_or(Limits { flops_per_second, bytes_per_second });
                state.limits = Some(Limits {
                    flops_per_second: flops_per_second.max(earlier.flops_per_second),
                    bytes_per_second: bytes_per_second.max(earlier.bytes_per_second),
                });
            }
            ref fact if state.is_open => {
                if let Some(region) = state.region.as_mut() {
                    region.note(event.at, fact);
                }
            }
            _ => {}
        }
    }
}

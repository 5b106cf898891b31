//! Observer of facts. It works on the thread that states them: a token costs one uncontended lock and an addition.

use std::collections::BTreeMap;
use std::time::Instant;

use flashjob_event::{Event, Fact, Needs, Observer, Phase};
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
    /// Engines that compute side by side.
    engines: usize,
    kv_blocks: Option<u64>,
    limits: Option<Limits>,
}

struct Region {
    started: Instant,
    has_requests: bool,
    elapsed_seconds: f64,
    slices: Slices,
    steps: Steps,
    /// Operations and bytes of the step of each engine whose end comes next.
    needed: BTreeMap<usize, Needs>,
}

impl Region {
    fn starting(at: Instant) -> Self {
        Self {
            started: at,
            has_requests: false,
            elapsed_seconds: 0.0,
            slices: Slices::default(),
            steps: Steps::default(),
            needed: BTreeMap::new(),
        }
    }

    fn slice(&mut self, at: Instant) -> &mut Sums {
        let seconds = at.saturating_duration_since(self.started).as_secs_f64();
        self.elapsed_seconds = self.elapsed_seconds.max(seconds);
        self.slices.at(seconds)
    }

    fn note(&mut self, at: Instant, fact: &Fact, engines: usize) {
        match *fact {
            // The clock starts with the first request, as that of the measurement does.
            Fact::RequestQueued { .. } if !self.has_requests => {
                *self = Self { has_requests: true, ..Self::starting(at) };
            }
            Fact::TokenGenerated { .. } => self.slice(at).output_tokens += 1,
            Fact::RequestFinished { .. } => self.slice(at).finished_requests += 1,
            // Its duration is in the next fact of the same thread.
            Fact::StepNeeded { engine, needs } => {
                self.needed.insert(engine, needs.total());
            }
            Fact::StepFinished {
                engine,
                duration,
                prefill_tokens,
                decode_tokens,
                running,
                waiting,
                kv_blocks_used,
            } => {
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
                if let Some(Needs { flops, bytes }) = self.needed.remove(&engine) {
                    // Each engine has its part of the machine: a step takes so much of the time of all of it.
                    self.steps.add(kind, flops, bytes, seconds / engines.max(1) as f64);
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
        self.state.lock().note(event);
    }

    fn observe_all(&self, events: &[Event]) {
        let mut state = self.state.lock();
        events.iter().for_each(|event| state.note(event));
    }
}

impl State {
    fn note(&mut self, event: &Event) {
        match event.fact {
            Fact::PhaseStarted(phase) => {
                self.is_open = phase == Phase::Measure;
                if self.is_open {
                    self.region = Some(Region::starting(event.at));
                }
            }
            Fact::EngineReady { engines, kv_blocks, .. } => {
                self.engines = engines;
                self.kv_blocks = Some(kv_blocks as u64);
            }
            // Measured twice, and whatever else runs on a machine only lowers them.
            Fact::LimitsMeasured { flops_per_second, bytes_per_second } => {
                let earlier = self.limits.unwrap_or(Limits { flops_per_second, bytes_per_second });
                self.limits = Some(Limits {
                    flops_per_second: flops_per_second.max(earlier.flops_per_second),
                    bytes_per_second: bytes_per_second.max(earlier.bytes_per_second),
                });
            }
            ref fact if self.is_open => {
                let engines = self.engines;
                if let Some(region) = self.region.as_mut() {
                    region.note(event.at, fact, engines);
                }
            }
            _ => {}
        }
    }
}

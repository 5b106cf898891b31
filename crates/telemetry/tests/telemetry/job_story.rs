//! A job told in facts, for a registry that has no engine behind it.

use std::sync::Arc;
use std::time::Duration;

use flashjob_event::{Events, Fact, FinishReason, Phase, RequestId};
use flashjob_telemetry::Registry;

/// A registry and the sending end that feeds it.
pub struct Story {
    pub registry: Arc<Registry>,
    events: Events,
}

impl Story {
    pub fn new() -> Self {
        let registry = Arc::new(Registry::new());
        Self { events: Events::to(vec![registry.clone()]), registry }
    }

    pub fn tell(&self, facts: impl IntoIterator<Item = Fact>) {
        facts.into_iter().for_each(|fact| self.events.emit(fact));
    }

    pub fn phase(&self, phase: Phase) {
        self.tell([Fact::PhaseStarted(phase)]);
    }

    pub fn load(&self) {
        self.tell([
            Fact::PhaseStarted(Phase::Mount),
            Fact::BucketRead { bytes: 1 << 20 },
            Fact::BucketRetried { reason: "throttled" },
            Fact::PhaseStarted(Phase::Load),
            Fact::WeightsRead { bytes: 1 << 20, total_bytes: 1 << 20 },
            Fact::EngineReady { engines: 1, kv_blocks: 64, block_tokens: 32 },
        ]);
    }

    /// Queues `request` and gives it its place.
    pub fn begin(&self, request: u32, prompt_tokens: u32) {
        let request = RequestId(request);
        self.tell([Fact::RequestQueued { request, prompt_tokens }, Fact::RequestScheduled { request }]);
    }

    /// One decode step of all of `requests`.
    pub fn step(&self, requests: &[u32]) {
        self.tell(requests.iter().map(|request| Fact::TokenGenerated { request: RequestId(*request), token: 1 }));
        self.tell([Fact::StepFinished {
            engine: 0,
            duration: Duration::from_millis(5),
            prefill_tokens: 0,
            decode_tokens: requests.len(),
            running: requests.len(),
            waiting: 0,
            kv_blocks_used: requests.len(),
        }]);
    }

    pub fn finish(&self, request: u32, output_tokens: u32) {
        let reason = FinishReason::Length;
        self.tell([Fact::RequestFinished { request: RequestId(request), output_tokens, reason }]);
    }
}

//! Facts worth a log line become one.
//!
//! What happens once is said as it happens. What can happen thousands of times is said the first time
//! and then each time its number doubles; tokens, steps and chunks of bytes are numbers, not lines.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::{debug, info, warn};

use crate::event::{Event, Fact, Observer, Phase};

/// The observer.
#[derive(Default)]
pub struct FactLog {
    phase: Mutex<Option<(Phase, Instant)>>,
    weights_read: AtomicU64,
    retries: AtomicU64,
    preemptions: AtomicU64,
}

impl FactLog {
    fn phase_started(&self, phase: Phase, at: Instant) {
        let previous = self.phase.lock().unwrap_or_else(PoisonError::into_inner).replace((phase, at));
        match previous {
            Some((previous, since)) => info!(
                target: "flashjob",
                phase = phase.name(),
                previous = previous.name(),
                previous_seconds = round(at.saturating_duration_since(since).as_secs_f64()),
                "phase started"
            ),
            None => info!(target: "flashjob", phase = phase.name(), "phase started"),
        }
    }

    fn weights_read(&self, bytes: u64, total_bytes: u64) {
        let before = self.weights_read.fetch_add(bytes, Ordering::Relaxed);
        if before < total_bytes && before.saturating_add(bytes) >= total_bytes {
            info!(target: "flashjob", bytes = total_bytes, "all weights are in memory");
        }
    }
}

impl Observer for FactLog {
    fn observe(&self, event: &Event) {
        match event.fact {
            Fact::PhaseStarted(phase) => self.phase_started(phase, event.at),
            Fact::WeightsRead { bytes, total_bytes } => self.weights_read(bytes, total_bytes),
            Fact::EngineReady { kv_blocks, block_tokens } => {
                info!(target: "flashjob", kv_blocks, block_tokens, "the engine can serve requests");
            }
            Fact::BucketRetried { reason } => {
                if let Some(retries) = worth_saying(&self.retries) {
                    warn!(target: "flashjob", reason, retries, "a bucket request is tried again");
                }
            }
            Fact::RequestPreempted { request } => {
                if let Some(preemptions) = worth_saying(&self.preemptions) {
                    info!(
                        target: "flashjob",
                        request = request.0,
                        preemptions,
                        "the KV cache is full: a request gave up its blocks and will be recomputed"
                    );
                }
            }
            Fact::RequestFinished { request, output_tokens, reason } => {
                debug!(target: "flashjob", request = request.0, output_tokens, ?reason, "a request is complete");
            }
            Fact::BucketRead { .. }
            | Fact::BucketWritten { .. }
            | Fact::RequestQueued { .. }
            | Fact::RequestScheduled { .. }
            | Fact::TokenGenerated { .. }
            | Fact::StepFinished { .. } => {}
        }
    }
}

/// Counts one more, and returns the number if it is a power of two.
fn worth_saying(count: &AtomicU64) -> Option<u64> {
    let count = count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    count.is_power_of_two().then_some(count)
}

/// To milliseconds: a log line is read by people.
fn round(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

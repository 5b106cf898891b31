//! Log lines for facts.
//!
//! Events that happen once are logged at once; frequent ones at the first time and each time their number doubles. Tokens, steps
//! and chunks of bytes are metrics, not lines.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tracing::{debug, info, warn};

use flashjob_event::{Event, Fact, Observer, Phase};

/// Observer that logs facts.
#[derive(Default)]
pub struct FactLog {
    phase: Mutex<Option<(Phase, Instant)>>,
    weights_read: AtomicU64,
    retries: AtomicU64,
    preemptions: AtomicU64,
}

impl FactLog {
    fn phase_started(&self, phase: Phase, at: Instant) {
        if phase == Phase::Load {
            // A sweep loads several models, one after the other.
            self.weights_read.store(0, Ordering::Relaxed);
        }
        // The lock ends with this statement: writing a line may wait for a terminal.
        let previous = self.phase.lock().replace((phase, at));
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
        // Bytes arrive on several threads; exactly one of them crosses the total.
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
            Fact::EngineReady { engines, kv_blocks, block_tokens } => {
                info!(target: "flashjob", engines, kv_blocks, block_tokens, "the engine can serve requests");
            }
            Fact::LimitsMeasured { flops_per_second, bytes_per_second } => {
                let (gflops, gigabytes) = (round(flops_per_second / 1e9), round(bytes_per_second / 1e9));
                info!(
                    target: "flashjob",
                    gigaflops_per_second = gflops,
                    gigabytes_per_second = gigabytes,
                    "the machine's limits are measured"
                );
            }
            Fact::BucketRetried { reason } => {
                if let Some(retries) = worth_saying(&self.retries) {
                    warn!(target: "flashjob", reason, retries, "a bucket request is tried again");
                }
            }
            Fact::UploadOpened { parts, parts_there, not_resumable: None } => {
                debug!(target: "flashjob", parts, parts_there, "an upload in parts, which a later process can go on with");
            }
            Fact::UploadOpened { parts, parts_there, not_resumable: Some(reason) } => {
                debug!(target: "flashjob", parts, parts_there, reason, "an upload in parts, which no later process can go on with");
            }
            Fact::RequestPreempted { request } => {
                if let Some(preemptions) = worth_saying(&self.preemptions) {
                    info!(
                        target: "flashjob",
                        request = request.0,
                        preemptions,
                        "a request gave up its blocks and will be recomputed: as a rule because the KV cache is full"
                    );
                }
            }
            Fact::RequestFinished { request, output_tokens, reason } => {
                debug!(target: "flashjob", request = request.0, output_tokens, ?reason, "a request is complete");
            }
            // Too frequent for lines; the registry counts them.
            Fact::BucketRead { .. }
            | Fact::BucketWritten { .. }
            | Fact::RequestQueued { .. }
            | Fact::RequestScheduled { .. }
            | Fact::PrefixSearched { .. }
            | Fact::TokenGenerated { .. }
            | Fact::StepStarted { .. }
            | Fact::StepNeeded { .. }
            | Fact::StepFinished { .. }
            // Progress says them.
            | Fact::BatchStarted { .. }
            | Fact::BatchSized { .. }
            | Fact::LinesAnswered { .. }
            | Fact::LinesAnsweredEarlier { .. } => {}
        }
    }
}

/// Increments `count`, and returns it if it is a power of two.
fn worth_saying(count: &AtomicU64) -> Option<u64> {
    // Logarithmic sampling: the log stays short, and the order of magnitude is visible.
    let count = count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    count.is_power_of_two().then_some(count)
}

/// Rounds to milliseconds: log lines are for people.
fn round(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::logs::tests::{OPTIONS, shown};
    use flashjob_event::{FinishReason, RequestId};

    /// Log lines for `facts`, one a second.
    fn said(facts: Vec<Fact>) -> Vec<Value> {
        let log = FactLog::default();
        let start = Instant::now();
        let lines = shown(&OPTIONS, || {
            for (seconds, fact) in (0..).zip(facts) {
                log.observe(&Event { at: start + Duration::from_secs(seconds), fact });
            }
        });
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_phase_says_how_long_the_one_before_it_took() {
        let lines = said(vec![
            Fact::PhaseStarted(Phase::Load),
            Fact::WeightsRead { bytes: 10, total_bytes: 30 },
            Fact::WeightsRead { bytes: 20, total_bytes: 30 },
            Fact::PhaseStarted(Phase::Measure),
        ]);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!((&lines[0]["phase"], lines[0].get("previous")), (&"load".into(), None));
        assert_eq!((&lines[1]["message"], &lines[1]["bytes"]), (&"all weights are in memory".into(), &30.into()));
        assert_eq!((&lines[2]["previous"], &lines[2]["previous_seconds"]), (&"load".into(), &3.0.into()));
    }

    #[test]
    fn each_load_says_when_its_weights_are_there() {
        let load = [Fact::PhaseStarted(Phase::Load), Fact::WeightsRead { bytes: 30, total_bytes: 30 }];
        let lines = said([load.clone(), load].concat());
        let found = lines.iter().filter(|line| line["message"] == "all weights are in memory").count();
        assert_eq!(found, 2, "{lines:?}");
    }

    #[test]
    fn what_happens_often_is_said_less_and_less() {
        let lines = said(vec![Fact::BucketRetried { reason: "throttled" }; 100]);
        let numbers: Vec<u64> = lines.iter().map(|line| line["retries"].as_u64().unwrap()).collect();
        assert_eq!(numbers, [1, 2, 4, 8, 16, 32, 64]);
        assert!(lines.iter().all(|line| line["level"] == "warn" && line["reason"] == "throttled"));
    }

    #[test]
    fn tokens_are_no_lines() {
        let request = RequestId(3);
        let reason = FinishReason::Length;
        let lines = said(vec![
            Fact::BucketRead { bytes: 1 },
            Fact::RequestQueued { request, prompt_tokens: 1 },
            Fact::RequestScheduled { request },
            Fact::TokenGenerated { request, token: 1 },
            Fact::RequestFinished { request, output_tokens: 1, reason },
        ]);
        assert!(lines.is_empty(), "{lines:?}");
    }
}

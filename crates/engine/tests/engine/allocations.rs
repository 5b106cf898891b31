//! A steady decode step asks the system for no memory but the crumbs in which candle looks at strides, on one rank or on
//! several.

use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::{Arc, Mutex};

use flashjob_config::EngineConfig;
use flashjob_event::{Event, Events, Fact, Observer};
use tokio_util::sync::CancellationToken;

use super::{config, load, request};
use crate::allocations::allocations;

/// Allocations so far at the end of each step.
struct AtEachStep(Mutex<Vec<u64>>);

impl Observer for AtEachStep {
    fn observe(&self, event: &Event) {
        if matches!(event.fact, Fact::StepFinished { .. }) {
            self.0.lock().unwrap().push(allocations());
        }
    }
}

/// What other tests allocate meanwhile is counted, too: so this one has a process to itself.
#[test]
fn a_steady_decode_step_allocates_nothing() {
    let test = "engine::allocations::counted_in_a_process_without_other_tests";
    let ran = Command::new(std::env::current_exe().unwrap()).args(["--exact", test, "--ignored"]).output().unwrap();
    let printed = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && printed.contains("1 passed"), "{printed}");
}

#[test]
#[ignore = "its process must not run anything else: another test starts it"]
fn counted_in_a_process_without_other_tests() {
    const STEPS: usize = 200;
    for ranks in [1, 2] {
        let config = EngineConfig { tensor_parallel_size: NonZeroUsize::new(ranks), ..config() };
        let mut engine = load("llama-gqa", &config);
        let counts = Arc::new(AtEachStep(Mutex::new(Vec::with_capacity(2 * STEPS))));
        let events = Events::to(vec![counts.clone()]);
        // The first time it sees how long everything gets.
        for _ in 0..2 {
            counts.0.lock().unwrap().clear();
            let requests = (0..5).map(|id| request(id, &[3 + id; 9], STEPS)).collect();
            engine.run(requests, &events, &CancellationToken::new(), &mut |_| {}).unwrap();
        }
        let counts = counts.0.lock().unwrap();
        assert!(counts.len() >= STEPS);
        // The first steps have a prefill among them; the last one hands out outputs.
        let steady = &counts[3..counts.len() - 1];
        let allocated = |pair: &[u64]| pair[1] - pair[0];
        let busy: Vec<_> = steady.windows(2).map(allocated).enumerate().filter(|(_, count)| *count > 0).collect();
        let first = &busy[..busy.len().min(10)];
        assert!(busy.is_empty(), "on {ranks} ranks, {} steps, (step, allocations): {first:?}", busy.len());
    }
}

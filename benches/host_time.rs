//! Time that the host takes for a decode step, in parts. A GPU waits for none of it as long as its own step takes longer, as the host is a
//! step ahead.
//!
//! `scripts/bench-host-time [SEQUENCES …]` runs it on the stand-in driver, which queues and copies nothing: what is left of a step is the
//! host's. Parts end where facts are stated; once without observers, and once with those of a job.
#![allow(clippy::print_stdout, missing_docs)]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flashjob::bench::{Recorder, StepTimes};
use flashjob_config::{DtypeChoice, EngineConfig};
use flashjob_cuda::Cuda;
use flashjob_engine::Engine;
use flashjob_event::{Event, Events, Fact, Observer, Phase};
use flashjob_telemetry::{FactLog, Registry};
use flashjob_test_engine::{config, open, request};
use flashjob_timeline::Timeline;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

const PROMPT: usize = 128;
const ANSWER: usize = 256;

/// Parts of one step.
#[derive(Clone, Copy, Default)]
struct Parts {
    /// Schedule, fill in, upload and launch the next step; read the tokens of this one.
    computed: Duration,
    /// Hand out tokens and state them.
    stated: Duration,
    /// From the end of the step before to the end of this one.
    all: Duration,
}

/// Notes when facts come: before all other observers, or after all of them.
#[derive(Default)]
struct Clock(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    ended: Option<Instant>,
    first_token: Option<Instant>,
    steps: Vec<(usize, Parts)>,
}

impl Observer for Clock {
    fn observe(&self, event: &Event) {
        let now = Instant::now();
        let mut noted = self.0.lock();
        match event.fact {
            Fact::TokenGenerated { .. } => {
                noted.first_token.get_or_insert(now);
            }
            Fact::StepFinished { prefill_tokens, decode_tokens, .. } => {
                let (before, token) = (noted.ended.replace(now), noted.first_token.take());
                if let (Some(before), Some(token), 0) = (before, token, prefill_tokens) {
                    let parts = Parts { computed: token - before, stated: now - token, all: now - before };
                    noted.steps.push((decode_tokens, parts));
                }
            }
            _ => {}
        }
    }
}

fn main() {
    assert!(
        std::env::var_os("STAND_IN_SHAPES").is_some(),
        "run scripts/bench-host-time: it sets up the stand-in driver"
    );
    let sizes = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    println!("median (and 90th percentile) of decode steps, microseconds");
    for sequences in sizes {
        let engine = EngineConfig {
            dtype: DtypeChoice::Bfloat16,
            tensor_parallel_size: NonZeroUsize::new(1),
            max_num_seqs: NonZeroUsize::new(sequences),
            max_num_batched_tokens: NonZeroUsize::new(16_384),
            memory_utilization: 0.9,
            validate_weights: false,
            ..config()
        };
        let (events, cancel) = (Events::default(), CancellationToken::new());
        let mut engine = Engine::load_on(&Cuda, &open("llama-gqa"), &engine, &events, &cancel).unwrap();
        for (name, observers) in
            [("no observers", no_observers as fn() -> _), ("observers of a job", observers_of_a_job)]
        {
            // Sizes of steps are recorded in a run of their own.
            measure(&mut engine, sequences, observers());
            let mut steps = measure(&mut engine, sequences, observers());
            let mut column = |of: fn(&Parts) -> Duration| {
                steps.sort_by_key(of);
                let at = |share: usize| of(&steps[steps.len() * share / 100]).as_secs_f64() * 1e6;
                format!("{:.0} ({:.0})", at(50), at(90))
            };
            println!(
                "{sequences} sequences, {name}: {} in all; {} until tokens are there, {} to hand them out and state them",
                column(|parts| parts.all),
                column(|parts| parts.computed),
                column(|parts| parts.stated),
            );
        }
    }
}

fn no_observers() -> Vec<Arc<dyn Observer>> {
    Vec::new()
}

fn observers_of_a_job() -> Vec<Arc<dyn Observer>> {
    vec![
        Arc::new(Registry::new()),
        Arc::new(Recorder::default()),
        Arc::new(Timeline::default()),
        Arc::new(StepTimes::default()),
        Arc::new(FactLog::default()),
    ]
}

/// Steps that decode all sequences.
fn measure(engine: &mut Engine, sequences: usize, observers: Vec<Arc<dyn Observer>>) -> Vec<Parts> {
    let clock = Arc::new(Clock::default());
    let mut all: Vec<Arc<dyn Observer>> = observers;
    all.push(clock.clone());
    let events = Events::to(all);
    events.emit(Fact::PhaseStarted(Phase::Measure));
    let requests = (0..sequences as u32).map(|id| request(id, &[7; PROMPT], ANSWER)).collect();
    engine.run(requests, &events, &CancellationToken::new(), &mut |_| {}).unwrap();
    let noted = std::mem::take(&mut *clock.0.lock());
    noted.steps.into_iter().filter(|(decodes, _)| *decodes == sequences).map(|(_, parts)| parts).collect()
}

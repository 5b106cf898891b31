//! Durations of the steps of a warm-up, by the number of sequences that decode in them.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::{Mutex, MutexGuard};

use flashjob_event::{Event, Fact, Observer, Phase};

/// Steps that are kept: a warm-up has far fewer.
const MOST_STEPS: usize = 100_000;

/// Observes the steps of the warm-up; all others pass by.
#[derive(Default)]
pub struct StepTimes(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    open: bool,
    steps: Vec<StepTime>,
}

/// Tokens and duration of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
struct StepTime {
    engine: usize,
    prefill_tokens: usize,
    decode_tokens: usize,
    seconds: f64,
}

/// Steps of one round.
#[derive(Clone, Debug, Default)]
pub(super) struct Round(Vec<StepTime>);

impl StepTimes {
    /// The steps since the last call, of the warm-up alone.
    pub(super) fn take(&self) -> Round {
        Round(std::mem::take(&mut self.lock().steps))
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock()
    }
}

impl Observer for StepTimes {
    fn observe(&self, event: &Event) {
        match event.fact {
            Fact::PhaseStarted(phase) => self.lock().open = phase == Phase::WarmUp,
            Fact::StepFinished { engine, duration, prefill_tokens, decode_tokens, .. } => {
                let mut noted = self.lock();
                if noted.open && noted.steps.len() < MOST_STEPS {
                    let seconds = duration.as_secs_f64();
                    noted.steps.push(StepTime { engine, prefill_tokens, decode_tokens, seconds });
                }
            }
            _ => {}
        }
    }
}

/// Size class of a step with `sequences`: the next power of two, as engines record and tune their steps by such sizes.
pub(super) fn size_class(sequences: usize) -> usize {
    sequences.next_power_of_two()
}

impl Round {
    /// Number of steps.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn decoding(&self) -> impl Iterator<Item = &StepTime> {
        self.0.iter().filter(|step| step.prefill_tokens == 0 && step.decode_tokens > 0)
    }

    /// Engines and size classes of steps that only decode.
    pub(super) fn decode_sizes(&self) -> BTreeSet<(usize, usize)> {
        self.decoding().map(|step| (step.engine, size_class(step.decode_tokens))).collect()
    }

    /// Median seconds of steps that only decode, by size class.
    pub(super) fn decode_seconds(&self) -> BTreeMap<usize, f64> {
        let mut by_size = BTreeMap::<usize, Vec<f64>>::new();
        self.decoding().for_each(|step| by_size.entry(size_class(step.decode_tokens)).or_default().push(step.seconds));
        let median = |mut seconds: Vec<f64>| {
            seconds.sort_by(f64::total_cmp);
            seconds[seconds.len() / 2]
        };
        by_size.into_iter().map(|(size, seconds)| (size, median(seconds))).collect()
    }
}

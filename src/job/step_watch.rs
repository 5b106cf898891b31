//! A watch on the engine's steps: one that never ends, as where a GPU or a link between GPUs hangs, would hold the job for ever.
//!
//! It observes facts and knows nothing of what computes. An engine in a process of its own does not state when its steps begin: that
//! one has watches of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use flashjob_event::{Event, Fact, Observer, Phase};

/// Least limit that is derived from the steps before.
const LEAST: Duration = Duration::from_secs(60);

/// The limit in median steps.
const MEDIANS: u32 = 50;

/// The limit in longest steps, which have whole batches of prompts where the median one decodes.
const LONGEST: u32 = 4;

/// Limit of the first step on a GPU, whose driver may compile kernels for it. On a CPU the first step has none: nothing is known of how
/// long the largest batch takes.
const FIRST_ON_GPU: Duration = Duration::from_secs(600);

/// Time after which an unchanged state is looked at again.
const LOOK: Duration = Duration::from_secs(1);

/// Limit of one step.
#[derive(Clone, Copy, Debug)]
pub struct StepLimit {
    /// The configured limit; `None`: derived from the steps before.
    pub asked: Option<Duration>,
    /// True where GPUs compute.
    pub on_gpus: bool,
}

/// Observes begins and ends of steps.
#[derive(Default)]
pub struct StepWatch(Mutex<Steps>);

#[derive(Default)]
struct Steps {
    phase: Option<Phase>,
    /// By number: where one of several hangs, the others go on for a while.
    engines: BTreeMap<usize, EngineSteps>,
    durations: Durations,
}

/// Steps of one engine.
struct EngineSteps {
    /// Begun and not ended: more than one where the engine queues a step behind the one that runs.
    under_way: usize,
    /// Prompt tokens and decoding sequences of the step that began last.
    last: (usize, usize),
    /// The last begin or end.
    changed: Instant,
}

impl EngineSteps {
    fn new(changed: Instant) -> Self {
        Self { under_way: 0, last: (0, 0), changed }
    }
}

/// A step that did not end in time: what is known of it.
#[derive(Debug, thiserror::Error)]
pub struct Overdue {
    limit: Duration,
    phase: &'static str,
    prefill_tokens: usize,
    decode_tokens: usize,
    steps: u64,
    median: Option<Duration>,
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, phase, prefill_tokens, decode_tokens, steps, median } = self;
        write!(
            f,
            "a step of the engine did not end within {} s: phase {phase}, {decode_tokens} decoding sequences and \
             {prefill_tokens} prompt tokens, after {steps} steps",
            limit.as_secs_f64()
        )?;
        if let Some(median) = median {
            write!(f, " of about {:.4} s in the median", median.as_secs_f64())?;
        }
        f.write_str("; a GPU or a link that hangs does that: run it on another node, or raise step-timeout-seconds")
    }
}

impl StepWatch {
    /// Waits until a step takes longer than `limit` allows.
    pub async fn overdue(&self, limit: StepLimit) -> Overdue {
        // Short limits are looked at more often, so that a step does not pass between two looks.
        let look = limit.asked.map_or(LOOK, |asked| (asked / 4).clamp(Duration::from_millis(1), LOOK));
        loop {
            if let Some(overdue) = self.lock().overdue_at(limit, Instant::now()) {
                return overdue;
            }
            tokio::time::sleep(look).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        self.0.lock()
    }
}

impl Steps {
    fn overdue_at(&self, limit: StepLimit, now: Instant) -> Option<Overdue> {
        let limit = self.limit(limit)?;
        let is_overdue =
            |steps: &&EngineSteps| steps.under_way > 0 && now.saturating_duration_since(steps.changed) > limit;
        let &EngineSteps { last: (prefill_tokens, decode_tokens), .. } = self.engines.values().find(is_overdue)?;
        Some(Overdue {
            limit,
            phase: self.phase.map_or("none", Phase::name),
            prefill_tokens,
            decode_tokens,
            steps: self.durations.count(),
            median: self.durations.median(),
        })
    }

    /// The limit of the step that is under way, if it has one.
    fn limit(&self, StepLimit { asked, on_gpus }: StepLimit) -> Option<Duration> {
        let derived = self.durations.median().map(|median| {
            let longest = self.durations.longest.saturating_mul(LONGEST);
            LEAST.max(median.saturating_mul(MEDIANS)).max(longest)
        });
        asked.or(derived).or(on_gpus.then_some(FIRST_ON_GPU))
    }
}

impl Observer for StepWatch {
    fn observe(&self, event: &Event) {
        let mut steps = self.lock();
        match event.fact {
            // Steps of a run that failed have no end.
            Fact::PhaseStarted(phase) => {
                steps.phase = Some(phase);
                steps.engines.clear();
            }
            Fact::StepStarted { engine, prefill_tokens, decode_tokens } => {
                let state = steps.engines.entry(engine).or_insert_with(|| EngineSteps::new(event.at));
                state.under_way += 1;
                (state.last, state.changed) = ((prefill_tokens, decode_tokens), event.at);
            }
            Fact::StepFinished { engine, duration, .. } => {
                if let Some(state) = steps.engines.get_mut(&engine) {
                    state.under_way = state.under_way.saturating_sub(1);
                    state.changed = event.at;
                }
                steps.durations.add(duration);
            }
            _ => {}
        }
    }
}

/// Durations in bins of powers of two microseconds: the order of magnitude is enough for a limit of fifty medians.
struct Durations {
    bins: [u64; 64],
    longest: Duration,
}

impl Default for Durations {
    fn default() -> Self {
        Self { bins: [0; 64], longest: Duration::ZERO }
    }
}

impl Durations {
    fn add(&mut self, duration: Duration) {
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
        self.bins[microseconds.ilog2() as usize] += 1;
        self.longest = self.longest.max(duration);
    }

    fn count(&self) -> u64 {
        self.bins.iter().sum()
    }

    /// Upper bound of the bin with the median; `None` where there is no duration.
    fn median(&self) -> Option<Duration> {
        let half = self.count().div_ceil(2);
        let mut below = 0;
        let bin = self.bins.iter().position(|&count| {
            below += count;
            half > 0 && below >= half
        })?;
        let bound = Duration::from_micros(1u64.checked_shl(bin as u32 + 1).unwrap_or(u64::MAX));
        Some(bound.min(self.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTO: StepLimit = StepLimit { asked: None, on_gpus: true };

    fn begin(watch: &StepWatch, at: Instant) {
        watch.observe(&Event { at, fact: Fact::StepStarted { engine: 0, prefill_tokens: 7, decode_tokens: 3 } });
    }

    fn end(watch: &StepWatch, at: Instant, duration: Duration) {
        let fact = Fact::StepFinished {
            engine: 0,
            duration,
            prefill_tokens: 7,
            decode_tokens: 3,
            running: 3,
            waiting: 0,
            kv_blocks_used: 1,
        };
        watch.observe(&Event { at, fact });
    }

    /// The limit that a step which began at `start` meets, in seconds, looked for up to a week.
    fn seconds_until_overdue(watch: &StepWatch, limit: StepLimit, start: Instant) -> Option<u64> {
        (0..7 * 86_400).find(|seconds| {
            let now = start + Duration::from_secs(*seconds) + Duration::from_millis(1);
            watch.lock().overdue_at(limit, now).is_some()
        })
    }

    #[test]
    fn the_limit_follows_the_median_and_the_longest_step() {
        for (milliseconds, expected) in [
            // The least limit.
            (&[10, 10, 10][..], 60),
            // 50 medians.
            (&[3000; 9], 150),
            // Four times the longest: one batch of prompts among steps that decode.
            (&[10, 10, 10, 10, 100_000], 400),
        ] {
            let (watch, start) = (StepWatch::default(), Instant::now());
            for &milliseconds in milliseconds {
                begin(&watch, start);
                end(&watch, start, Duration::from_millis(milliseconds));
            }
            assert_eq!(seconds_until_overdue(&watch, AUTO, start), None, "nothing is under way");
            begin(&watch, start);
            assert_eq!(seconds_until_overdue(&watch, AUTO, start), Some(expected), "{milliseconds:?}");
        }
    }

    #[test]
    fn the_first_step_has_a_limit_on_gpus_and_none_on_a_cpu() {
        let (watch, start) = (StepWatch::default(), Instant::now());
        begin(&watch, start);
        assert_eq!(seconds_until_overdue(&watch, AUTO, start), Some(600));
        assert_eq!(seconds_until_overdue(&watch, StepLimit { on_gpus: false, ..AUTO }, start), None);
        let asked = StepLimit { asked: Some(Duration::from_secs(5)), on_gpus: false };
        assert_eq!(seconds_until_overdue(&watch, asked, start), Some(5));
    }

    #[test]
    fn a_step_that_is_queued_behind_another_is_waited_for_from_the_end_of_that_one() {
        let (watch, start) = (StepWatch::default(), Instant::now());
        let limit = StepLimit { asked: Some(Duration::from_secs(5)), on_gpus: false };
        begin(&watch, start);
        begin(&watch, start);
        end(&watch, start + Duration::from_secs(4), Duration::from_secs(4));
        assert_eq!(seconds_until_overdue(&watch, limit, start), Some(9));
        end(&watch, start, Duration::ZERO);
        assert_eq!(seconds_until_overdue(&watch, limit, start), None);
    }

    #[test]
    fn steps_of_a_run_that_failed_are_forgotten_with_the_next_phase() {
        let (watch, start) = (StepWatch::default(), Instant::now());
        watch.observe(&Event { at: start, fact: Fact::PhaseStarted(Phase::Measure) });
        begin(&watch, start);
        let overdue = watch.lock().overdue_at(AUTO, start + Duration::from_secs(601)).unwrap().to_string();
        for part in ["600 s", "phase measure", "3 decoding sequences", "7 prompt tokens", "after 0 steps;"] {
            assert!(overdue.contains(part), "no {part}: {overdue}");
        }
        watch.observe(&Event { at: start, fact: Fact::PhaseStarted(Phase::Publish) });
        assert_eq!(seconds_until_overdue(&watch, AUTO, start), None);
    }
}

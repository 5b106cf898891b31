//! Levels of the batch over the measured region: the steady window, and what kept sequences waiting.
//!
//! A region begins with a batch that fills up and ends with one that runs empty. Between them lies the window in which the machine has
//! as much to do as this workload gives it. Nothing here knows where figures go.

use std::collections::VecDeque;

use serde::Serialize;

/// Share of the highest concurrency from which a step counts as steady (that of `vllm bench serve`'s steady state).
const STEADY_SHARE: f64 = 0.95;

/// Share of places that count as all of them: an engine that admits requests in groups of a sixteenth leaves fewer free while
/// others wait.
const TAKEN_SHARE: f64 = 15.0 / 16.0;

/// Steps that are kept one by one. Of a region with more, two neighbours become one, as often as it takes.
const MOST_STEPS: usize = 1 << 19;

/// The batch after one step, or after some steps that follow one another.
#[derive(Clone, Copy, Debug, PartialEq)]
struct StepLevel {
    /// Seconds since the region began.
    at_seconds: f64,
    running: u32,
    waiting: u32,
    kv_blocks_used: u32,
    /// Tokens generated since the step before.
    output_tokens: u32,
}

impl StepLevel {
    /// This step and the one behind it as one.
    fn then(self, next: Self) -> Self {
        Self {
            running: self.running.max(next.running),
            kv_blocks_used: self.kv_blocks_used.max(next.kv_blocks_used),
            output_tokens: self.output_tokens + next.output_tokens,
            ..next
        }
    }
}

/// Levels after each step of a region.
#[derive(Clone, Debug, Default)]
pub struct Occupancy {
    steps: Vec<StepLevel>,
    /// Tokens that belong to no step yet, by their time: an engine states those of a step before the step or after it.
    unassigned: VecDeque<(f64, u32)>,
}

/// The part of a region in which the batch was full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SteadyWindow {
    /// From the beginning of the region to that of the window.
    pub ramp_up_seconds: f64,
    /// Length of the window.
    pub seconds: f64,
    /// From the end of the window to that of the region.
    pub tail_seconds: f64,
    /// Tokens generated within the window.
    pub output_tokens: u64,
    /// Highest concurrency of the region, in sequences.
    pub peak_running: u32,
}

/// Shares of a region's time in which requests waited although a larger setting would have taken them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WaitingShares {
    /// The `max-num-seqs` places of all engines were taken, all but a group of them.
    pub for_a_place: f64,
    /// Places were free, but the KV cache had no blocks for another sequence.
    pub for_blocks: f64,
    /// Highest concurrency while they waited for blocks.
    pub running_without_blocks: u32,
    /// Most blocks in use.
    pub peak_kv_blocks: u32,
    /// Highest concurrency of the region.
    pub peak_running: u32,
}

impl Occupancy {
    /// Counts a token that came `at_seconds` after the beginning.
    pub(super) fn token(&mut self, at_seconds: f64) {
        match self.unassigned.back_mut() {
            Some((at, tokens)) if *at == at_seconds => *tokens += 1,
            _ => self.unassigned.push_back((at_seconds, 1)),
        }
    }

    /// Notes the levels after a step that ended `at_seconds` after the beginning.
    pub(super) fn step(&mut self, at_seconds: f64, running: usize, waiting: usize, kv_blocks_used: usize) {
        let narrow = |level: usize| u32::try_from(level).unwrap_or(u32::MAX);
        let mut output_tokens = 0;
        while let Some((_, tokens)) = self.unassigned.pop_front_if(|(at, _)| *at <= at_seconds) {
            output_tokens += tokens;
        }
        // Half the resolution: a window is found to some steps, of half a million.
        if self.steps.len() == MOST_STEPS {
            self.steps = self.steps.chunks(2).filter_map(|pair| pair.iter().copied().reduce(StepLevel::then)).collect();
        }
        self.steps.push(StepLevel {
            at_seconds,
            running: narrow(running),
            waiting: narrow(waiting),
            kv_blocks_used: narrow(kv_blocks_used),
            output_tokens,
        });
    }

    fn peak_running(&self) -> u32 {
        self.steps.iter().map(|step| step.running).max().unwrap_or(0)
    }

    /// The steady window of a region of `elapsed_seconds`; `None` where fewer than two steps were at that level.
    pub fn steady_window(&self, elapsed_seconds: f64) -> Option<SteadyWindow> {
        let peak_running = self.peak_running();
        let is_steady = |step: &StepLevel| f64::from(step.running) >= STEADY_SHARE * f64::from(peak_running);
        let first = self.steps.iter().position(is_steady)?;
        let last = self.steps.iter().rposition(is_steady)?;
        // One moment is no window: a run that ends with its first step has nothing but ramp-up and tail.
        if peak_running == 0 || first == last {
            return None;
        }
        let (begin, end) = (self.steps[first].at_seconds, self.steps[last].at_seconds);
        // Tokens of the first step were there when the window began.
        let output_tokens = self.steps[first + 1..=last].iter().map(|step| u64::from(step.output_tokens)).sum();
        Some(SteadyWindow {
            ramp_up_seconds: begin,
            seconds: end - begin,
            tail_seconds: (elapsed_seconds - end).max(0.0),
            output_tokens,
            peak_running,
        })
    }

    /// Causes of waiting, for engines of `places` sequences and `kv_blocks` blocks together.
    pub fn waiting(&self, places: usize, kv_blocks: usize) -> WaitingShares {
        let mut found = WaitingShares {
            peak_running: self.peak_running(),
            peak_kv_blocks: self.steps.iter().map(|step| step.kv_blocks_used).max().unwrap_or(0),
            ..WaitingShares::default()
        };
        let (mut before, mut all) = (0.0, 0.0);
        for step in &self.steps {
            let seconds = (step.at_seconds - before).max(0.0);
            before = step.at_seconds;
            all += seconds;
            if step.waiting == 0 {
                continue;
            }
            let free_blocks = kv_blocks.saturating_sub(step.kv_blocks_used as usize);
            let blocks_per_sequence = step.kv_blocks_used / step.running.max(1);
            if f64::from(step.running) >= TAKEN_SHARE * places as f64 {
                found.for_a_place += seconds;
            } else if free_blocks < blocks_per_sequence as usize {
                // Fewer than a running sequence has: prompts of the usual length do not fit. While a batch fills up, blocks are
                // free, and nothing but the token budget of a step holds requests back.
                found.for_blocks += seconds;
                found.running_without_blocks = found.running_without_blocks.max(step.running);
            }
        }
        if all > 0.0 {
            found.for_a_place /= all;
            found.for_blocks /= all;
        }
        found
    }
}

impl SteadyWindow {
    /// Output tokens per second within the window.
    pub fn output_tokens_per_second(&self) -> f64 {
        self.output_tokens as f64 / self.seconds
    }

    /// The windows of several regions together: durations and tokens add up.
    pub(super) fn together(windows: impl Iterator<Item = Option<Self>>) -> Option<Self> {
        windows.reduce(|sum, window| {
            let (sum, window) = (sum?, window?);
            Some(Self {
                ramp_up_seconds: sum.ramp_up_seconds + window.ramp_up_seconds,
                seconds: sum.seconds + window.seconds,
                tail_seconds: sum.tail_seconds + window.tail_seconds,
                output_tokens: sum.output_tokens + window.output_tokens,
                peak_running: sum.peak_running.max(window.peak_running),
            })
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of a second each: (running, waiting, blocks), with as many tokens as sequences ran before.
    fn occupancy(levels: &[(usize, usize, usize)]) -> Occupancy {
        let mut occupancy = Occupancy::default();
        for (second, &(running, waiting, blocks)) in levels.iter().enumerate() {
            let at = (second + 1) as f64;
            (0..running).for_each(|_| occupancy.token(at));
            occupancy.step(at, running, waiting, blocks);
        }
        occupancy
    }

    #[test]
    fn the_window_lies_between_ramp_up_and_tail() {
        let levels = [(10, 30, 1), (96, 10, 1), (100, 5, 1), (20, 5, 1), (95, 0, 1), (40, 0, 1), (0, 0, 0)];
        let window = occupancy(&levels).steady_window(7.5).unwrap();
        // From the end of the second step to that of the fifth, with a dip between two waves inside.
        let expected = SteadyWindow {
            ramp_up_seconds: 2.0,
            seconds: 3.0,
            tail_seconds: 2.5,
            output_tokens: 100 + 20 + 95,
            peak_running: 100,
        };
        assert_eq!(window, expected);
        assert_eq!(window.output_tokens_per_second(), 215.0 / 3.0);
    }

    #[test]
    fn a_long_region_keeps_its_window_in_bounded_memory() {
        let mut occupancy = Occupancy::default();
        let steps = 2 * MOST_STEPS + 7;
        for step in 0..steps {
            let at = (step + 1) as f64;
            occupancy.token(at);
            occupancy.step(at, if step < steps / 2 { 1 } else { 8 }, 0, 1);
            assert!(occupancy.steps.len() <= MOST_STEPS);
        }
        let window = occupancy.steady_window(steps as f64).unwrap();
        assert!((window.ramp_up_seconds - (steps / 2) as f64).abs() < 8.0, "{window:?}");
        assert!((window.seconds - window.output_tokens as f64).abs() < 8.0, "{window:?}");
    }

    #[test]
    fn a_moment_is_no_window() {
        for levels in [&[][..], &[(0, 0, 0)], &[(4, 0, 1)], &[(4, 0, 1), (3, 0, 1), (0, 0, 0)]] {
            assert_eq!(occupancy(levels).steady_window(9.0), None, "{levels:?}");
        }
    }

    #[test]
    fn tokens_stated_after_their_step_count_in_the_next_one() {
        let mut occupancy = Occupancy::default();
        occupancy.step(1.0, 1, 0, 1);
        occupancy.token(1.5);
        occupancy.step(2.0, 1, 0, 1);
        occupancy.step(3.0, 1, 0, 1);
        assert_eq!(occupancy.steady_window(3.0).unwrap().output_tokens, 1);
    }

    #[test]
    fn requests_wait_for_places_or_for_blocks() {
        let of = |levels: &[(usize, usize, usize)]| {
            let found = occupancy(levels).waiting(8, 100);
            (found.for_a_place, found.for_blocks, found.running_without_blocks)
        };
        // All places are taken in three of four seconds.
        assert_eq!(of(&[(8, 9, 40), (8, 5, 48), (8, 1, 48), (8, 0, 48)]), (0.75, 0.0, 0));
        // While a group ends before others are admitted, a sixteenth of the places is free.
        let in_groups = occupancy(&[(32, 9, 40), (31, 9, 40), (30, 9, 40), (29, 9, 40)]).waiting(32, 100);
        assert_eq!((in_groups.for_a_place, in_groups.for_blocks), (0.75, 0.0));
        // Four sequences have 24 blocks each, and 4 are left.
        assert_eq!(of(&[(4, 9, 96), (4, 5, 96), (2, 0, 48)]), (0.0, 2.0 / 3.0, 4));
        // A batch that fills up waits for the next step, and for nothing else.
        assert_eq!(of(&[(2, 9, 10), (4, 7, 20)]), (0.0, 0.0, 0));
    }

    #[test]
    fn windows_of_several_regions_add_up_unless_one_has_none() {
        let window =
            SteadyWindow { ramp_up_seconds: 1.0, seconds: 2.0, tail_seconds: 3.0, output_tokens: 8, peak_running: 4 };
        let sum = SteadyWindow::together([Some(window), Some(window)].into_iter()).unwrap();
        assert_eq!((sum.seconds, sum.output_tokens, sum.output_tokens_per_second()), (4.0, 16, 4.0));
        assert_eq!(SteadyWindow::together([Some(window), None].into_iter()), None);
        assert_eq!(SteadyWindow::together(std::iter::empty()), None);
    }
}

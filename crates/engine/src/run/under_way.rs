//! Steps between their launch and their tokens: one, or two where a device runs ahead.
//!
//! What they are made of is the scheduler's. This file keeps their order, whose turn it is, and how long each took.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::device::ops::Turn;
use crate::schedule::scheduler_output::ScheduledSequence;

/// A step that a device computes.
#[derive(Debug)]
pub struct StepUnderWay {
    /// Sequences that it computes tokens of.
    pub scheduled: Vec<ScheduledSequence>,
    /// Where its tokens will be.
    pub turn: Turn,
    /// Some of its sequences want log-probabilities.
    pub wants_logprobs: bool,
    /// When the host began with it.
    pub begun: Instant,
    /// Prompt tokens that it computes.
    pub prefill_tokens: usize,
    /// Sequences that decode one token in it.
    pub decode_tokens: usize,
}

/// Steps under way, the oldest first.
#[derive(Debug, Default)]
pub struct StepsUnderWay {
    steps: VecDeque<StepUnderWay>,
    /// Lists of sequences to be used again.
    lists: Vec<Vec<ScheduledSequence>>,
    turn: Turn,
    /// When the last one ended.
    ended: Option<Instant>,
}

impl StepsUnderWay {
    /// Number of steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// A list for the sequences of the next step.
    pub fn list(&mut self) -> Vec<ScheduledSequence> {
        self.lists.pop().unwrap_or_default()
    }

    /// The turn of the next step.
    pub fn turn(&self) -> Turn {
        self.turn
    }

    /// Adds a step, whose turn was [`Self::turn`].
    pub fn push(&mut self, step: StepUnderWay) {
        self.turn = step.turn.next();
        self.steps.push_back(step);
    }

    /// Takes out the oldest one.
    pub fn pop(&mut self) -> Option<StepUnderWay> {
        self.steps.pop_front()
    }

    /// Notes that `step` has ended now; returns how long it was the oldest one, so that no time counts twice.
    pub fn end(&mut self, step: StepUnderWay) -> Duration {
        let now = Instant::now();
        let begun = self.ended.replace(now).map_or(step.begun, |ended| ended.max(step.begun));
        self.lists.push(step.scheduled);
        now.saturating_duration_since(begun)
    }
}

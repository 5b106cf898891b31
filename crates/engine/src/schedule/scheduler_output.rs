//! The next step as the scheduler decides it: sequences with the tokens that are computed of each.

use std::ops::Range;

/// A sequence's number: the order in which it was added.
pub type SequenceIndex = usize;

/// Tokens of one sequence that one step computes: all that are not computed yet, or a chunk of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledSequence {
    /// Sequence that the tokens belong to.
    pub sequence: SequenceIndex,
    /// Tokens before them, whose keys and values are in the cache.
    pub num_computed_tokens: usize,
    /// Tokens that are computed, at least 1.
    pub num_scheduled_tokens: usize,
    /// They reach the last known token, so the last row's logits choose the next one.
    pub samples: bool,
    /// They are one token of a sequence whose prefill is done.
    pub decodes: bool,
    /// Number of times that the sequence had lost its blocks by then.
    pub restarts: u32,
}

impl ScheduledSequence {
    /// Positions of the tokens in their sequence.
    pub fn positions(&self) -> Range<usize> {
        self.num_computed_tokens..self.num_computed_tokens + self.num_scheduled_tokens
    }
}

/// The next step, and the changes that made it possible.
#[derive(Debug, Default)]
pub struct SchedulerOutput {
    /// Decoding sequences first, then those that prefill.
    pub scheduled: Vec<ScheduledSequence>,
    /// Sequences that lost their blocks, youngest first.
    pub preempted: Vec<SequenceIndex>,
    /// Sequences that run for the first time.
    pub admitted: Vec<Admission>,
}

/// A sequence runs for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Index of the sequence.
    pub sequence: SequenceIndex,
    /// Tokens of its prompt whose keys and values were found in the cache.
    pub reused_tokens: usize,
}

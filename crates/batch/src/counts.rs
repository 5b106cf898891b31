//! How many answers there are of each kind.

use std::ops::AddAssign;

use flashjob_event::AnswerKind;
use serde::{Deserialize, Serialize};

/// Numbers of answers, and of their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerCounts {
    completed: u64,
    invalid: u64,
    too_long: u64,
    unsupported: u64,
    /// Earlier versions counted these as `failed`.
    #[serde(default)]
    non_finite: u64,
    failed: u64,
    /// Tokens of the prompts that were run.
    pub input_tokens: u64,
    /// Generated tokens.
    pub output_tokens: u64,
}

impl AnswerCounts {
    /// Those of a single answer.
    pub(crate) fn one(kind: AnswerKind, input_tokens: u64, output_tokens: u64) -> Self {
        let mut counts = Self { input_tokens, output_tokens, ..Self::default() };
        *counts.of_mut(kind) = 1;
        counts
    }

    /// Answers of `kind`.
    pub fn of(&self, kind: AnswerKind) -> u64 {
        *{ *self }.of_mut(kind)
    }

    /// Answers of all kinds.
    pub fn answers(&self) -> u64 {
        AnswerKind::ALL.into_iter().map(|kind| self.of(kind)).sum()
    }

    /// Answers that are no completions.
    pub fn errors(&self) -> u64 {
        self.answers() - self.completed
    }

    fn of_mut(&mut self, kind: AnswerKind) -> &mut u64 {
        match kind {
            AnswerKind::Completed => &mut self.completed,
            AnswerKind::Invalid => &mut self.invalid,
            AnswerKind::TooLong => &mut self.too_long,
            AnswerKind::Unsupported => &mut self.unsupported,
            AnswerKind::NonFinite => &mut self.non_finite,
            AnswerKind::Failed => &mut self.failed,
        }
    }
}

impl AddAssign for AnswerCounts {
    fn add_assign(&mut self, other: Self) {
        for kind in AnswerKind::ALL {
            *self.of_mut(kind) += other.of(kind);
        }
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
    }
}

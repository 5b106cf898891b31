//! Kinds of answers to the lines of a batch.

use serde::{Deserialize, Serialize};

/// Kind of an answer: a completion, or the reason for which there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// Text of the model, whole.
    Completed,
    /// The line is no request: not JSON, no prompt, a value out of its range.
    Invalid,
    /// The prompt, with what is to be generated, is longer than the model or the job takes.
    TooLong,
    /// An option that this engine does not have.
    Unsupported,
    /// The model's output for it is not a number.
    NonFinite,
    /// The engine ended the request with another error.
    Failed,
}

impl AnswerKind {
    /// All kinds, in the order of reading.
    pub const ALL: [Self; 6] =
        [Self::Completed, Self::Invalid, Self::TooLong, Self::Unsupported, Self::NonFinite, Self::Failed];

    /// The kinds that are no completions.
    pub fn errors() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|&kind| kind != Self::Completed)
    }

    /// Name in files, metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Invalid => "invalid",
            Self::TooLong => "too_long",
            Self::Unsupported => "unsupported",
            Self::NonFinite => "non_finite",
            Self::Failed => "failed",
        }
    }

    /// The kind of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

//! An entry of a dataset, and its place in the file.

use std::fmt;

use serde::Serialize;

use flashjob_event::RequestId;

use super::matcher::Matcher;
use super::question::AnswerForm;

/// Place of an entry in its file, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Line of a file, counted from 1.
    Line(usize),
    /// An element of an array.
    Entry(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(number) => write!(f, "line {number}"),
            Place::Entry(number) => write!(f, "entry {number}"),
        }
    }
}

/// A line or entry of a dataset, run or skipped.
#[derive(Clone, Debug)]
pub enum Entry {
    /// An entry that became a request.
    Asked {
        /// Its place in the file.
        place: Place,
        /// Number of its request.
        request: RequestId,
        /// Tokens of its prompt.
        prompt_tokens: usize,
        /// Format of its answer.
        form: AnswerForm,
        /// The correct answer, where the entry has one.
        answer: Option<Matcher>,
    },
    /// It is left out.
    Skipped {
        /// Its place in the file.
        place: Place,
        /// Its name, where it is a line of a batch that says so.
        custom_id: Option<String>,
        /// Reason for the refusal.
        reason: String,
    },
}

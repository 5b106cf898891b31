//! An entry of a dataset, and its place in the file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use flashjob_event::RequestId;

use super::matcher::Matcher;
use super::question::{AnswerForm, RefusalKind};
use super::reply_format::ReplyFormat;

/// Place of an entry in its dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of its file, where there are several.
    pub file: Option<Arc<str>>,
    /// Place in the file.
    pub position: Position,
}

/// Place in a file, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// A line of a text file.
    Line(usize),
    /// A row of a table.
    Row(usize),
    /// An element of an array.
    Entry(usize),
}

impl Position {
    /// What is counted, as messages and answers call it.
    pub fn unit(self) -> &'static str {
        match self {
            Position::Line(_) => "line",
            Position::Row(_) => "row",
            Position::Entry(_) => "entry",
        }
    }

    /// The number, from 1.
    pub fn number(self) -> usize {
        let (Position::Line(number) | Position::Row(number) | Position::Entry(number)) = self;
        number
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}, ")?;
        }
        write!(f, "{} {}", self.position.unit(), self.position.number())
    }
}

/// A line or entry of a dataset, run or skipped.
#[derive(Clone, Debug)]
pub enum Entry {
    /// An entry that became a request.
    Asked {
        /// Its place in the file.
        place: Place,
        /// Number of its request: that of the entry among all of the dataset.
        request: RequestId,
        /// Numbers of the requests for its further answers.
        others: Range<u32>,
        /// Text that goes before that of each answer: its prompt, where that is to be repeated.
        echo: Option<Arc<str>>,
        /// Tokens of its prompt.
        prompt_tokens: usize,
        /// Format of its answer.
        form: AnswerForm,
        /// Parts of its text: thoughts, content and tool calls.
        reply: ReplyFormat,
        /// The correct answer, where the entry has one.
        answer: Option<Matcher>,
    },
    /// It is left out.
    Skipped {
        /// Its place in the file.
        place: Place,
        /// Its number among all entries, as a request would have it.
        request: RequestId,
        /// Format of its answer, as far as the entry says.
        form: AnswerForm,
        /// Kind of the refusal.
        kind: RefusalKind,
        /// Reason for the refusal.
        reason: String,
    },
}

impl Entry {
    /// Numbers of the requests for its answers, in their order; none where it was left out.
    pub fn requests(&self) -> impl Iterator<Item = RequestId> + use<> {
        let (first, others) = match self {
            Entry::Asked { request, others, .. } => (Some(*request), others.clone()),
            Entry::Skipped { .. } => (None, 0..0),
        };
        first.into_iter().chain(others.map(RequestId))
    }
}

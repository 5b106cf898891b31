//! Entries of a batch that are ready and not taken yet: the window between the reader and whatever runs them.
//!
//! Requests leave it in the order of `schedule`: it has all that is read ahead, and the queue of an engine only what that takes next.

use std::collections::VecDeque;
use std::mem::size_of;
use std::num::NonZeroUsize;

use flashjob_config::Schedule;

use super::entries::PreparedEntry;
use super::entry::Entry;
use super::matcher::Matcher;
use super::question::AnswerForm;
use crate::backend::{Orderable, Request, WaitingRequests};

/// Entries that are ready.
pub(super) struct Window {
    /// Entries that are to be run.
    requests: WaitingRequests<PreparedEntry>,
    /// Entries that were refused, which wait for nothing.
    refused: VecDeque<PreparedEntry>,
    bytes: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self::new(Schedule::Input, NonZeroUsize::MIN)
    }
}

impl Window {
    /// An empty window, whose requests leave it in the order of `schedule`; `block_tokens` are those of a block of the engine.
    pub fn new(schedule: Schedule, block_tokens: NonZeroUsize) -> Self {
        let requests = WaitingRequests::new(schedule, block_tokens.get());
        Self { requests, refused: VecDeque::new(), bytes: 0 }
    }

    /// Takes in the next entry of the input.
    pub fn push(&mut self, entry: PreparedEntry) {
        self.bytes += bytes(&entry);
        match entry.request {
            Some(_) => self.requests.push(entry),
            // They go first, so that a batch of bad lines alone never waits for a request to come.
            None => self.refused.push_back(entry),
        }
    }

    /// The entry that is next.
    pub fn pop(&mut self) -> Option<PreparedEntry> {
        // One consumer, whatever the number of engines behind it.
        let entry = self.refused.pop_front().or_else(|| self.requests.pop(0))?;
        self.bytes -= bytes(&entry);
        Some(entry)
    }

    /// Memory that entries take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Requests that are ready, in any order.
    pub fn requests(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter().filter_map(|entry| entry.request.as_ref())
    }
}

impl Orderable for PreparedEntry {
    fn prompt(&self) -> &[u32] {
        match &self.request {
            Some(request) => &request.prompt,
            None => &[],
        }
    }

    fn max_tokens(&self) -> usize {
        self.request.as_ref().map_or(0, |request| request.max_tokens)
    }
}

/// About as many bytes as `prepared` takes.
pub(super) fn bytes(prepared: &PreparedEntry) -> usize {
    // What is small and the same for all entries is in the size of the type; only texts of the user's make a difference.
    let (form, other) = match &prepared.entry {
        Entry::Asked { form, echo, answer: Some(Matcher::Exact(text) | Matcher::Regex(text)), .. } => {
            (form, text.len() + echo.as_ref().map_or(0, |echo| echo.len()))
        }
        Entry::Asked { form, echo, .. } => (form, echo.as_ref().map_or(0, |echo| echo.len())),
        Entry::Skipped { form, reason, .. } => (form, reason.len()),
    };
    let (labels, custom_id) = match form {
        AnswerForm::Plain(labels) => (labels, 0),
        AnswerForm::Batch { custom_id, labels, .. } => (labels, custom_id.len()),
    };
    // Names and values of a map, and its nodes.
    let labels = labels.iter().map(|(name, value)| name.len() + value.to_string().len() + 128).sum::<usize>();
    let prompt = prepared.request.as_ref().map_or(0, |request| size_of::<u32>() * request.prompt.capacity());
    size_of::<PreparedEntry>() + prompt + labels + custom_id + other
}

//! Correct answers beside speed: a setting that makes a run faster may spoil what it says.

use std::collections::HashMap;

use serde::Serialize;

use flashjob_event::RequestId;

use crate::backend::Completion;
use crate::prepare::Entry;

/// Answers that could be compared, and those of them that are correct.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Accuracy {
    /// Entries with a correct answer that were asked.
    pub questions: usize,
    /// Completions that meet it. A request that ended with an error is not correct.
    pub correct: usize,
}

impl Accuracy {
    /// Compares `completions` with the answers of `entries`; `None` where no entry has one, or none of those was completed.
    pub fn of(entries: &[Entry], completions: &[Completion]) -> Option<Self> {
        let by_id: HashMap<RequestId, &Completion> =
            completions.iter().map(|completion| (completion.id, completion)).collect();
        let mut found = Self::default();
        for entry in entries {
            let Entry::Asked { request, answer: Some(_), .. } = entry else { continue };
            // One that a run did not get to was not asked.
            let Some(completion) = by_id.get(request) else { continue };
            found.note(entry, completion);
        }
        found.of_any()
    }

    /// Counts in an entry and its completion, where it has a correct answer.
    pub fn note(&mut self, entry: &Entry, completion: &Completion) {
        if let Entry::Asked { answer: Some(answer), .. } = entry {
            self.questions += 1;
            self.correct += usize::from(completion.error.is_none() && answer.is_met(&completion.text));
        }
    }

    /// Itself, where there was anything to compare.
    pub fn of_any(self) -> Option<Self> {
        (self.questions > 0).then_some(self)
    }

    /// Share of correct answers.
    pub fn share(&self) -> f64 {
        self.correct as f64 / self.questions as f64
    }
}

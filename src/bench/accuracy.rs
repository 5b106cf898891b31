//! Correct answers beside speed: a setting that makes a run faster may spoil what it says.

use std::collections::HashMap;

use serde::Serialize;

use flashjob_event::RequestId;

use crate::backend::Completion;
use crate::prepare::Entry;

/// Answers that could be compared, and those of them that are correct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
        let mut found = Self { questions: 0, correct: 0 };
        for entry in entries {
            let Entry::Asked { request, answer: Some(answer), .. } = entry else { continue };
            // One that a run did not get to was not asked.
            let Some(completion) = by_id.get(request) else { continue };
            found.questions += 1;
            found.correct += usize::from(completion.error.is_none() && answer.is_met(&completion.text));
        }
        (found.questions > 0).then_some(found)
    }

    /// Share of correct answers.
    pub fn share(&self) -> f64 {
        self.correct as f64 / self.questions as f64
    }
}

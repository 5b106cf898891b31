//! What a request asks for, kept until its completion is held against it.

use flashjob_event::FinishReason;

use crate::backend::{Completion, Request};

/// The counts of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expectation {
    pub prompt_tokens: usize,
    pub max_tokens: usize,
    may_stop: bool,
}

impl Expectation {
    /// The counts that `request` asks for.
    pub fn of(request: &Request) -> Self {
        Self { prompt_tokens: request.prompt.len(), max_tokens: request.max_tokens, may_stop: request.may_stop() }
    }

    /// Checks that `completion` has as many tokens as its end allows.
    ///
    /// # Errors
    /// The deviation, in words.
    pub fn check(&self, completion: &Completion) -> Result<(), String> {
        let (produced, expected) = (completion.tokens.len(), self.max_tokens);
        // With `ignore_eos` and no stop tokens nothing but its length ends a request. One that ended with an error lacks at least
        // the token of the error.
        let in_order = match completion.reason {
            FinishReason::Length => produced == expected,
            FinishReason::Stop if !self.may_stop => produced == expected,
            FinishReason::Stop => produced <= expected,
            FinishReason::Error => produced < expected,
        };
        match in_order {
            true => Ok(()),
            false => Err(format!("request {} produced {produced} tokens, not {expected}", completion.id.0)),
        }
    }
}

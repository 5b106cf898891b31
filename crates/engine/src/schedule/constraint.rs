//! What a request's text must be, as far as an engine knows it: masks over the vocabulary.
//!
//! Grammars are outside of the engine (package `flashjob-guidance`), behind these two traits.

use std::fmt::Debug;

/// What a text must be. Many requests may share it.
pub trait Constraint: Debug + Send + Sync {
    /// A text of which there is nothing yet. Everything but [`ConstrainedText::accept`] is called on this `thread` of those that
    /// compute masks, one call at a time.
    ///
    /// # Errors
    /// A sentence, with which the request ends.
    fn begin(&self, thread: usize) -> Result<Box<dyn ConstrainedText>, String>;
}

/// A text that is being generated.
pub trait ConstrainedText: Send {
    /// Writes which tokens may come next: bit `i % 32` of word `i / 32` for token `i`. At least one may.
    ///
    /// # Errors
    /// A sentence, with which the request ends.
    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String>;

    /// Takes the next token in, and tells whether the text is complete with it.
    ///
    /// # Errors
    /// A sentence, with which the request ends.
    fn accept(&mut self, token: u32) -> Result<bool, String>;
}

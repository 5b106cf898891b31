//! A text under a grammar, token by token.

use std::sync::Arc;

use llguidance::Matcher as Parser;
use regex_automata::util::primitives::StateID;

use super::Error;
use super::shared_masks::SharedMasks;

/// What is left of a text after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More tokens may come.
    Open,
    /// It is complete, and nothing may come after it.
    Complete,
}

/// A text of a grammar that is being generated.
pub struct Matcher {
    parser: Parser,
    /// Masks of others, and where among them this text is.
    shared: Option<(Arc<SharedMasks>, StateID)>,
}

impl Matcher {
    pub(super) fn new(parser: Parser, shared: Option<Arc<SharedMasks>>) -> Self {
        let shared = shared.map(|masks| {
            let start = masks.start();
            (masks, start)
        });
        Self { parser, shared }
    }

    /// Takes the next token in, which the mask allowed.
    ///
    /// # Errors
    /// [`Error::Stuck`] of one that it did not allow, and of a limit.
    pub fn accept(&mut self, token: u32) -> Result<Progress, Error> {
        self.parser.consume_token(token).map_err(|error| Error::stuck(&error.to_string()))?;
        if let Some((masks, state)) = &mut self.shared {
            *state = masks.after(*state, token);
        }
        Ok(if self.parser.is_stopped() { Progress::Complete } else { Progress::Open })
    }

    /// Writes which tokens may come next: bit `i % 32` of word `i / 32` for token `i`, from the lowest; those behind the vocabulary
    /// may not.
    ///
    /// # Errors
    /// [`Error::Stuck`] where none may, or finding out goes beyond a limit.
    pub fn allowed(&mut self, mask: &mut [u32]) -> Result<(), Error> {
        if self.shared.as_ref().is_some_and(|(masks, state)| masks.read(*state, mask)) {
            return Ok(());
        }
        self.compute(mask)?;
        if let Some((masks, state)) = &self.shared {
            masks.keep(*state, mask);
        }
        Ok(())
    }

    fn compute(&mut self, mask: &mut [u32]) -> Result<(), Error> {
        let allowed = self.parser.compute_mask_or_eos().map_err(|error| Error::stuck(&error.to_string()))?;
        // The last one is the end of texts that models without such a token have.
        // Bits behind it are of no token, and would be read as logits of the padding of an embedding.
        let (words, tokens) = (allowed.as_slice(), allowed.len() - 1);
        // The mask may be wider than the vocabulary of the tokenizer: a model's embedding is often padded.
        mask.fill(0);
        let whole = words.len().min(mask.len());
        mask[..whole].copy_from_slice(&words[..whole]);
        if let Some(last) = mask.get_mut(tokens / 32) {
            *last &= (1 << (tokens % 32)) - 1;
        }
        mask.iter_mut().skip(tokens / 32 + 1).for_each(|word| *word = 0);
        match mask.iter().all(|&word| word == 0) {
            true => Err(Error::stuck("no token of the vocabulary may come next")),
            false => Ok(()),
        }
    }
}

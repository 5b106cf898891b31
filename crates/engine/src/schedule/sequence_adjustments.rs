//! Changes that a request's options make to the logits of its next token: biases, penalties, and no end before `min_tokens`.
//!
//! Lists hold the tokens that are changed and no others, and are kept from token to token; a sequence without such options has none. Nothing
//! here reads logits.

use std::collections::HashMap;
use std::sync::Arc;

use flashjob_config::SamplingOptions;
use flashjob_cpu::{LogitAdjustments, Penalties, TokenEntry};

/// Adjustments of one sequence.
#[derive(Debug)]
pub struct SequenceAdjustments {
    options: Arc<SamplingOptions>,
    /// Biases that the request asks for.
    biased: Vec<TokenEntry>,
    /// The same with the tokens ruled out that would end it, until it may end.
    biased_at_first: Vec<TokenEntry>,
    /// Tokens that penalties look at, in the order in which they came.
    counted: Vec<TokenEntry>,
    /// Places of tokens in `counted`.
    places: HashMap<u32, usize>,
}

impl SequenceAdjustments {
    /// Adjustments of a sequence that begins with `prompt` and ends with one of `stop_tokens`; `None` where there is nothing to adjust.
    pub fn new(options: &Arc<SamplingOptions>, stop_tokens: &[u32], prompt: &[u32]) -> Option<Self> {
        let ends_late = options.min_tokens > 0 && !stop_tokens.is_empty();
        if options.logit_bias.is_empty() && !ends_late && !options.has_penalties() {
            return None;
        }
        let entry = |&(token, bias): &(u32, f32)| TokenEntry::biased(token, bias);
        let others = options.logit_bias.iter().filter(|(token, _)| !stop_tokens.contains(token));
        // A token is in a list once, as kernels change all entries of a list at the same time.
        let mut ruled_out = stop_tokens.to_vec();
        ruled_out.sort_unstable();
        ruled_out.dedup();
        let ruled_out = ruled_out.into_iter().map(|token| TokenEntry::biased(token, f32::NEG_INFINITY));
        let mut adjustments = Self {
            biased: options.logit_bias.iter().map(entry).collect(),
            biased_at_first: if ends_late { others.map(entry).chain(ruled_out).collect() } else { Vec::new() },
            counted: Vec::new(),
            places: HashMap::new(),
            options: Arc::clone(options),
        };
        // The other two penalties look at generated tokens alone.
        if options.repetition_penalty != 1.0 {
            for &token in prompt {
                adjustments.place(token);
            }
        }
        Some(adjustments)
    }

    fn place(&mut self, token: u32) -> usize {
        let Self { counted, places, .. } = self;
        *places.entry(token).or_insert_with(|| {
            counted.push(TokenEntry::counted(token, 0));
            counted.len() - 1
        })
    }

    /// True where changes follow from the tokens that were generated, and not from their number alone.
    pub fn counts_tokens(&self) -> bool {
        self.options.has_penalties()
    }

    /// Notes a token that was generated.
    pub fn count(&mut self, token: u32) {
        // A hash a token, and only where somebody asks for counts.
        if self.counts_tokens() {
            let place = self.place(token);
            self.counted[place].count();
        }
    }

    /// Puts the changes of the next token's logits, those of `row`, to `adjustments`; so many tokens were `generated`.
    pub fn push(&self, row: usize, generated: usize, adjustments: &mut LogitAdjustments) {
        let may_end = generated >= self.options.min_tokens || self.biased_at_first.is_empty();
        let biased = if may_end { &self.biased } else { &self.biased_at_first };
        if biased.is_empty() && self.counted.is_empty() {
            return;
        }
        let SamplingOptions { repetition_penalty, frequency_penalty, presence_penalty, .. } = *self.options;
        let penalties =
            Penalties { repetition: repetition_penalty, frequency: frequency_penalty, presence: presence_penalty };
        adjustments.push(row, biased, &self.counted, penalties);
    }
}

#[cfg(test)]
mod tests;

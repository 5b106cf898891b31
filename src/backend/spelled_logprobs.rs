//! Log-probabilities of an answer with the texts of their tokens, whichever engine gave them.

use std::collections::HashMap;

use flashjob_engine::TokenLogprobs;
use flashjob_model::{Error, TextService};

/// A token of an answer, its log-probability and the likeliest ones in its place. Of their texts a part of a character is U+FFFD.
#[derive(Clone, Debug, PartialEq)]
pub struct SpelledLogprobs {
    /// The token's text.
    pub text: String,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The same of the likeliest tokens, likeliest first.
    pub top: Vec<(String, f32)>,
}

impl SpelledLogprobs {
    /// Spells the log-probabilities of `tokens`, of which `logprobs` may have more.
    ///
    /// # Errors
    /// As of [`TextService::spell`].
    pub(super) fn of(texts: &TextService, tokens: &[u32], logprobs: &[TokenLogprobs]) -> Result<Vec<Self>, Error> {
        let logprobs = &logprobs[..tokens.len().min(logprobs.len())];
        // Each token once, however often it is among the likeliest: a question to the texts' process takes longer than a sort.
        let of_top = logprobs.iter().flat_map(|of_token| of_token.top.iter().map(|&(token, _)| token));
        let mut asked: Vec<u32> = tokens.iter().copied().chain(of_top).collect();
        asked.sort_unstable();
        asked.dedup();
        let spelled: HashMap<u32, String> = asked.iter().copied().zip(texts.spell(&asked)?).collect();
        let text = |token: u32| spelled.get(&token).cloned().unwrap_or_default();
        let of_token = |(&token, of_token): (&u32, &TokenLogprobs)| Self {
            text: text(token),
            logprob: of_token.logprob,
            top: of_token.top.iter().map(|&(token, logprob)| (text(token), logprob)).collect(),
        };
        Ok(tokens.iter().zip(logprobs).map(of_token).collect())
    }
}

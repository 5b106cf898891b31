//! Requests to the engine, and their outputs.

use std::sync::Arc;

use super::constraint::Constraint;
use super::limits::EngineLimits;
use super::stop_texts::StopTexts;
use flashjob_config::{Sampling, SamplingOptions};
use flashjob_cpu::TokenLogprobs;
use flashjob_event::{FinishReason, RequestId};

/// One prompt to continue.
#[derive(Clone, Debug)]
pub struct Request {
    /// Names it in events and in its output.
    pub id: RequestId,
    /// Token ids; never empty.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most, at least 1.
    pub max_tokens: usize,
    /// Tokens that end it, themselves part of the output. Empty: exactly `max_tokens` are generated.
    pub stop_tokens: Vec<u32>,
    /// Texts that end it.
    pub stop_texts: Option<StopTexts>,
    /// What its text must be; it ends where that is complete.
    pub constraint: Option<Arc<dyn Constraint>>,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Options beyond those, of the requests that have any.
    pub options: Option<Arc<SamplingOptions>>,
    /// With `stream` and a token's position, decides every random choice.
    pub seed: u64,
    /// Number of the request among those that share the seed.
    pub stream: u32,
}

impl Request {
    /// Refuses what could not be served even if it had the whole engine to itself.
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self, limits: &EngineLimits) -> Result<(), Refused> {
        let refuse = |reason: String| Err(Refused { request: self.id, reason });
        let (prompt, max_tokens) = (self.prompt.len(), self.max_tokens);
        if prompt == 0 {
            return refuse("its prompt is empty; give it at least one token".into());
        }
        if max_tokens == 0 {
            return refuse("it asks for no tokens; ask for at least one".into());
        }
        if let Some(token) = self.prompt.iter().find(|&&token| token as usize >= limits.vocab_size) {
            let rows = limits.vocab_size;
            return refuse(format!(
                "its prompt has token {token}, but the model's ids end below {rows}; use the model's own tokenizer"
            ));
        }
        let longest = limits.max_model_len;
        if prompt.saturating_add(max_tokens) > longest {
            return refuse(format!(
                "{prompt} prompt tokens and {max_tokens} new ones are more than max-model-len, which is {longest}; shorten \
                 it or raise max-model-len"
            ));
        }
        let (needed_tokens, cache_tokens) = (self.cached_tokens(), limits.num_blocks * limits.block_size);
        if needed_tokens > cache_tokens {
            return refuse(format!(
                "it needs {needed_tokens} tokens in the KV cache, which holds {cache_tokens}; shorten it or give the cache \
                 more memory"
            ));
        }
        Ok(())
    }

    /// Tokens whose keys and values it needs to keep at its longest.
    pub(super) fn cached_tokens(&self) -> usize {
        // The last generated token is handed out, never fed back: its keys and values are not needed.
        self.prompt.len().saturating_add(self.max_tokens).saturating_sub(1)
    }
}

/// A request that cannot be served, whatever else runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request {} cannot run: {reason}", .request.0)]
pub struct Refused {
    /// Request that is refused.
    pub request: RequestId,
    /// Its fault, and a change that helps.
    pub reason: String,
}

/// Outcome of a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Name of the request.
    pub id: RequestId,
    /// Generated tokens.
    pub tokens: Vec<u32>,
    /// Log-probabilities of each of them, where they were asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Reason for which it ended.
    pub reason: FinishReason,
    /// The last of `tokens`, where it is one that ended the request and is no part of its answer.
    pub stop_token: Option<u32>,
    /// Stop texts of its request, where one of them has ended it: it is complete with the last token.
    pub stop_texts: Option<StopTexts>,
    /// The fault: with [`FinishReason::Error`], and only then.
    pub error: Option<RequestError>,
}

impl Output {
    /// That of a request which is not computed.
    pub(crate) fn refused(refused: Refused) -> Self {
        let id = refused.request;
        let (tokens, logprobs, reason) = (Vec::new(), Vec::new(), FinishReason::Error);
        Self { id, tokens, logprobs, reason, stop_token: None, stop_texts: None, error: Some(refused.into()) }
    }
}

/// The end of a request that is its own: no other one depends on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It was never computed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It has no next token.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// Its constraint cannot be kept.
    #[error(transparent)]
    Unconstrained(#[from] Unconstrained),
}

/// The constraint of a request cannot be kept any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text of request {} cannot be constrained as asked: {reason}", .request.0)]
pub struct Unconstrained {
    /// Request whose constraint it is.
    pub request: RequestId,
    /// What the constraint said, as a clause.
    pub reason: String,
}

/// The model's output for a request is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the logits of request {} at position {position} are not finite: the weights are damaged, or too large for this \
     dtype; try --validate-weights, or dtype float32",
    .request.0
)]
pub struct NotFinite {
    /// Request whose logits they are.
    pub request: RequestId,
    /// Position of the token that was to be chosen.
    pub position: usize,
}

#[cfg(test)]
impl Request {
    /// A greedy request without options, which ends by its length.
    pub(super) fn greedy(id: u32, prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            id: RequestId(id),
            prompt,
            max_tokens,
            stop_tokens: Vec::new(),
            stop_texts: None,
            constraint: None,
            sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: None },
            options: None,
            seed: 0,
            stream: id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_longer_than_the_cache_is_refused() {
        let limits = EngineLimits {
            max_num_seqs: 4,
            max_num_batched_tokens: 64,
            max_model_len: usize::MAX,
            block_size: 8,
            num_blocks: 4,
            num_spare_blocks: 1,
            vocab_size: 1,
        };
        let refused = |max_tokens| {
            let prompt = vec![0; 30];
            let request = Request::greedy(7, prompt, max_tokens);
            request.check(&limits).err().map(|refused| refused.to_string())
        };
        assert_eq!(refused(3), None);
        let sentence = "request 7 cannot run: it needs 33 tokens in the KV cache, which holds 32; shorten it or give the \
                        cache more memory";
        assert_eq!(refused(4).as_deref(), Some(sentence));
        assert!(refused(usize::MAX - 40).is_some_and(|sentence| sentence.contains("which holds 32")));
    }
}

//! Requests to the engine, and their outputs.

use flashjob_config::Sampling;
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
    /// Sampling parameters.
    pub sampling: Sampling,
    /// With `id` and a token's position, decides every random choice.
    pub seed: u64,
}

/// A request that could not run even if it had the whole cache to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeverFits {
    /// Tokens whose keys and values it needs to keep at its longest.
    pub needed_tokens: usize,
    /// Tokens that the cache holds.
    pub cache_tokens: usize,
}

/// Outcome of a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name of the request.
    pub id: RequestId,
    /// Generated tokens.
    pub tokens: Vec<u32>,
    /// Reason for which it ended.
    pub reason: FinishReason,
    /// The fault: with [`FinishReason::Error`], and only then.
    pub error: Option<NotFinite>,
}

/// The model's output for a request is not a number. That is the request's own end: no other one depends on it.
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

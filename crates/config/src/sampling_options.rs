//! Options of a request that change logits, bound its end, or ask for log-probabilities: what [`Sampling`](super::Sampling) leaves out.
//!
//! Most requests have none, and then there is no value of this type. Definitions are vLLM's (`vllm/sampling_params.py`), which are
//! OpenAI's where OpenAI has the option; `docs/prompts.md` has their limits.

/// Options of one request. Each default is the value that changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// In [0, 1]: tokens of less than this share of the likeliest one's probability are left out, after temperature.
    pub min_p: f32,
    /// Tokens that are generated before one that would end the answer may be.
    pub min_tokens: usize,
    /// Tokens that end the answer beside those of the model, ascending, each once.
    pub stop_token_ids: Vec<u32>,
    /// In [-2, 2]: taken from the logit of each token that was generated.
    pub presence_penalty: f32,
    /// In [-2, 2]: taken from a token's logit as often as it was generated.
    pub frequency_penalty: f32,
    /// Above 0: divides positive logits of tokens of prompt and answer, and multiplies negative ones.
    pub repetition_penalty: f32,
    /// Numbers that are added to the logits of tokens; ascending by token, each once.
    pub logit_bias: Vec<(u32, f32)>,
    /// Likeliest tokens whose log-probabilities are wanted beside that of the token that was chosen.
    pub logprobs: Option<usize>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            min_p: 0.0,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

impl SamplingOptions {
    /// Returns whether a token's logit depends on the tokens before it.
    pub fn has_penalties(&self) -> bool {
        (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)
    }

    /// Returns whether logits are changed before temperature is applied.
    pub fn changes_logits(&self) -> bool {
        self.has_penalties() || self.min_tokens > 0 || !self.logit_bias.is_empty()
    }
}

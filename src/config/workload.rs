//! What a job says of its work: the prompts, how many, how tokens are chosen.

use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What is run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Where prompts come from.
    pub dataset: Dataset,
    /// Tokens in each random prompt.
    pub input_len: NonZeroUsize,
    /// Tokens to generate for each request.
    pub output_len: NonZeroUsize,
    /// Requests; `None` is all of the dataset (64 random ones).
    pub num_prompts: Option<NonZeroUsize>,
    /// Requests before the measured region. Default 1.
    pub warmup: usize,
    /// Seed of prompts and sampling.
    pub seed: u64,
    /// Generate exactly `output_len` tokens, whatever the model says. Default true for random prompts,
    /// false for real ones.
    pub ignore_eos: bool,
}

/// `dataset`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dataset {
    /// Distinct sequences of random tokens.
    Random,
    /// A file of JSON lines, each `{"prompt": "…"}`.
    Jsonl(PathBuf),
}

/// How tokens are chosen. Temperature 0 is greedy.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Sampling {
    /// ≥ 0; 0 takes the likeliest token.
    pub temperature: f32,
    /// In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keep the `k` likeliest; `None` keeps all.
    pub top_k: Option<NonZeroUsize>,
}

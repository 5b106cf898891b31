//! Settings of the workload: prompts, their number and their lengths.

use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Share;

/// Prompts and outputs of a job.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Source of prompts.
    pub dataset: Dataset,
    /// Tokens in each random prompt.
    pub input_len: NonZeroUsize,
    /// Tokens to generate for each request that does not say itself.
    pub output_len: NonZeroUsize,
    /// Relative spread of the lengths of random requests around both lengths; in [0, 1).
    pub random_range_ratio: f64,
    /// Requests; `None` is all of the dataset (64 random ones).
    pub num_prompts: Option<NonZeroUsize>,
    /// Requests before the measured region. Default 0 for prompts that want answers, 1 for those that measure.
    pub warmup: WarmUp,
    /// Measured regions.
    pub repeats: Repeats,
    /// Share of correct answers below which the run fails.
    pub least_accuracy: Option<f64>,
    /// Seed of prompts and sampling.
    pub seed: u64,
    /// Generate exactly as many tokens as were asked for, whatever the model says. Default false for the prompts of
    /// `jsonl`, which want answers, true for those that measure.
    pub ignore_eos: bool,
    /// Prompts that go through the model's chat template.
    pub apply_chat_template: ApplyChatTemplate,
    /// Reaction to entries of the dataset that are no prompts.
    pub on_bad_input: OnBadInput,
    /// Fields of a request that the dataset has under other names.
    pub columns: Columns,
    /// The part of the prompts that this process runs.
    pub share: Share,
    /// Its prompts are a batch: each is answered once, over as many jobs as that takes. `None` where they measure.
    pub batch: Option<Batch>,
}

/// Names that the fields of requests have in a dataset, where they are others: pairs of field and column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns(Vec<(String, String)>);

impl Columns {
    /// Fields with their columns.
    pub fn new(columns: Vec<(String, String)>) -> Self {
        Self(columns)
    }

    /// Each field with its column.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(field, column)| (field.as_str(), column.as_str()))
    }
}

/// Settings of the answers to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Lines whose answers share a file; `None` leaves it to the size of the input.
    pub shard_lines: Option<NonZeroU64>,
    /// Order of the answers in a file.
    pub output_order: OutputOrder,
    /// Lines without an answer beyond which the job fails.
    pub max_errors: Option<u64>,
}

/// `output-order`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputOrder {
    /// That of the input.
    Input,
    /// The one in which answers come.
    Any,
}

impl Workload {
    /// Lengths that random prompts may have.
    pub fn input_lengths(&self) -> RangeInclusive<usize> {
        spread(self.input_len, self.random_range_ratio)
    }

    /// Lengths that the outputs of random prompts may have.
    pub fn output_lengths(&self) -> RangeInclusive<usize> {
        spread(self.output_len, self.random_range_ratio)
    }
}

/// `[length · (1 - ratio), length · (1 + ratio)]`, rounded outwards and never below 1, as vLLM's random dataset has it
/// (`vllm/benchmarks/datasets`).
fn spread(length: NonZeroUsize, ratio: f64) -> RangeInclusive<usize> {
    // 0.07 · 100 is a little above 7 in binary; that is no reason for an eighth token.
    const ROUNDING: f64 = 1e-6;
    let length = length.get();
    let distance = (length as f64 * ratio - ROUNDING).ceil().max(0.0) as usize;
    length.saturating_sub(distance).max(1)..=length + distance
}

/// `warmup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmUp {
    /// So many requests, each cut to a few tokens.
    Requests(usize),
    /// Rounds of as many requests as run at a time, until step times are stable and each step size has been seen.
    Auto,
}

/// `repeats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// So many regions.
    Count(NonZeroUsize),
    /// Regions until the confidence interval of the throughput is narrow.
    UntilClose,
}

impl Repeats {
    /// One region, and no spread.
    pub const ONCE: Self = Self::Count(NonZeroUsize::MIN);
}

/// Prompts that begin alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SharedPrefixes {
    /// Different prefixes.
    pub count: NonZeroUsize,
    /// Tokens in each; fewer than in a prompt.
    pub len: NonZeroUsize,
    /// Share of the requests that begin with one of them; in (0, 1].
    pub share: f64,
}

/// Values of the key `dataset`.
#[derive(Clone, Debug, PartialEq)]
pub enum Dataset {
    /// Distinct sequences of random tokens.
    Random,
    /// Random tokens behind shared prefixes of random tokens.
    Prefix(SharedPrefixes),
    /// Lines of Shakespeare's sonnets in random order.
    Sonnet,
    /// Sums and products with their results: a smoke test of a model's answers.
    Arithmetic,
    /// A JSON array of conversations between `human` and `gpt`.
    ShareGpt {
        /// Path of the file.
        path: PathBuf,
        /// Lengths of the outputs.
        reply_length: ReplyLength,
    },
    /// A file of JSON lines: prompts, or an OpenAI batch.
    Jsonl(PathBuf),
}

impl Dataset {
    /// Returns whether its prompts are there to measure, so that lengths are part of the workload; others want answers.
    pub fn measures(&self) -> bool {
        !matches!(self, Dataset::Jsonl(_) | Dataset::Arithmetic)
    }

    /// Returns whether each prompt has exactly `input-len` tokens, or as many as `random-range-ratio` lets it have.
    pub fn has_input_len(&self) -> bool {
        matches!(self, Dataset::Random | Dataset::Prefix(_) | Dataset::Sonnet)
    }

    /// The file that it is read from, if it is.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Dataset::Random | Dataset::Prefix(_) | Dataset::Sonnet | Dataset::Arithmetic => None,
            Dataset::ShareGpt { path, .. } | Dataset::Jsonl(path) => Some(path),
        }
    }
}

/// Output length for a conversation of `sharegpt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyLength {
    /// As many as the reply in the dataset has.
    Recorded,
    /// The value of `output-len`, which was given.
    OutputLen,
}

/// `apply-chat-template`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyChatTemplate {
    /// To conversations: `messages`, and `sharegpt` where the model has a template. A bare prompt is taken as it is.
    Auto,
    /// To everything; a bare prompt is what a user says.
    Always,
    /// No prompt at all.
    Never,
}

/// `on-bad-input`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBadInput {
    /// The job ends before anything is computed.
    Fail,
    /// It is reported and left out.
    Skip,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_spread_evenly_and_stay_above_zero() {
        for (length, ratio, expected) in [
            (128, 0.0, 128..=128),
            (100, 0.1, 90..=110),
            (100, 0.07, 93..=107),
            (100, 0.29, 71..=129),
            (10, 0.25, 7..=13),
            (1, 0.5, 1..=2),
            (8, 0.999, 1..=16),
        ] {
            assert_eq!(spread(NonZeroUsize::new(length).unwrap(), ratio), expected, "{length} {ratio}");
        }
    }
}

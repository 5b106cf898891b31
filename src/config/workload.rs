//! What a job says of its work: the prompts, how many, how tokens are chosen.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::choice::DatasetKind;
use super::error::ConfigError;
use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;

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

/// Requests where neither the dataset nor the user says how many.
const NUM_PROMPTS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Reads what is run. `None`: an error was noted.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<Workload> {
    let dataset = dataset(resolver, raw);
    let show_count = |count: &NonZeroUsize| count.to_string();
    let input_len = resolver.read(&raw.input_len, parsing::count, show_count);
    let output_len = resolver.read(&raw.output_len, parsing::count, show_count);
    let is_random = dataset == Some(Dataset::Random);
    let prompts_default = is_random.then_some(NUM_PROMPTS);
    let num_prompts = resolver.read_or(&raw.num_prompts, prompts_default, parsing::count, show_count);
    let warmup = resolver.read(
        &raw.warmup,
        |text| {
            let number = parsing::whole(text, 0, parsing::LARGEST_COUNT)?;
            usize::try_from(number).map_err(|_| "it is too large here".to_owned())
        },
        usize::to_string,
    );
    let seed = resolver.read(&raw.seed, |text| parsing::whole(text, 0, u64::MAX), u64::to_string);
    let ignore_eos = resolver.read_or(&raw.ignore_eos, Some(is_random), parsing::boolean, bool::to_string);
    Some(Workload {
        dataset: dataset?,
        input_len: input_len?,
        output_len: output_len?,
        num_prompts: num_prompts?,
        warmup: warmup?,
        seed: seed?,
        ignore_eos: ignore_eos?.unwrap_or(is_random),
    })
}

fn dataset(resolver: &mut Resolver, raw: &Raw) -> Option<Dataset> {
    let kind: Option<DatasetKind> = resolver.choose(&raw.dataset);
    let path = resolver.read_open(&raw.dataset_path, parsing::path, |path| path.display().to_string());
    let sentence = match (kind?, path?) {
        (DatasetKind::Random, None) => return Some(Dataset::Random),
        (DatasetKind::Jsonl, Some(path)) => return Some(Dataset::Jsonl(path)),
        (DatasetKind::Jsonl, None) => "dataset is `jsonl`, but dataset-path is missing; give the file of JSON lines",
        (DatasetKind::Random, Some(_)) => {
            "dataset-path is given, but dataset is `random`, which reads no file; set dataset=jsonl or leave it out"
        }
    };
    resolver.errors.push(ConfigError::Together(sentence.to_owned()));
    None
}

/// Reads how tokens are chosen. `None`: an error was noted.
pub(super) fn resolve_sampling(resolver: &mut Resolver, raw: &Raw) -> Option<Sampling> {
    // An `f32` of its own: a value that rounds to infinity or to zero there is not the value that was meant.
    let temperature = resolver.read(
        &raw.temperature,
        |text| {
            let fits = |number: f64| (number as f32).is_finite() && (number == 0.0 || number as f32 > 0.0);
            parsing::number(text, "a number of at least 0", fits).map(|number| number as f32)
        },
        f32::to_string,
    );
    let top_p = resolver.read(
        &raw.top_p,
        |text| {
            let fits = |share: f64| share as f32 > 0.0 && share <= 1.0;
            parsing::number(text, "a number above 0 and at most 1", fits).map(|number| number as f32)
        },
        f32::to_string,
    );
    let top_k = resolver.read(
        &raw.top_k,
        |text| match text {
            "0" | "-1" => Ok(None),
            _ => parsing::count(text).map(Some).map_err(|clause| format!("{clause}, or 0 or -1 for all")),
        },
        |top_k| top_k.map_or_else(|| "0".to_owned(), |count| count.to_string()),
    );
    Some(Sampling { temperature: temperature?, top_p: top_p?, top_k: top_k? })
}

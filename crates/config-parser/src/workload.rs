//! The workload from its keys: source, number and length of prompts.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use flashjob_config::{Choice, Dataset, EngineConfig, Origin, ReplyLength, Share, Workload};

use super::error::ConfigError;
use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;

/// Requests where neither the dataset nor the user says how many.
const NUM_PROMPTS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// `dataset`, before the file is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DatasetKind {
    Random,
    ShareGpt,
    Jsonl,
}

impl Choice for DatasetKind {
    const NAMES: &'static [(&'static str, Self)] =
        &[("random", Self::Random), ("sharegpt", Self::ShareGpt), ("jsonl", Self::Jsonl)];
}

/// Decides all keys of the workload but those of sampling.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw, share: Option<Share>) -> Option<Workload> {
    let show_count = |count: &NonZeroUsize| count.to_string();
    let dataset = dataset(resolver, raw);
    let input_len = resolver.read(&raw.input_len, parsing::count, show_count);
    let output_len = output_len(resolver, raw, dataset.as_ref());
    let random_range_ratio = range_ratio(resolver, raw, dataset.as_ref());
    let prompts_default = (dataset == Some(Dataset::Random)).then_some(NUM_PROMPTS);
    let num_prompts = resolver.read_or(&raw.num_prompts, prompts_default, parsing::count, show_count);
    // Prompts of `jsonl` want answers; the others measure: they are warmed up, and lengths are part of what they measure.
    let measures = !matches!(dataset, Some(Dataset::Jsonl(_)));
    let warmup_default = usize::from(measures);
    let warmup = resolver.read_or(
        &raw.warmup,
        Some(warmup_default),
        |text| {
            let number = parsing::whole(text, 0, parsing::LARGEST_COUNT)?;
            usize::try_from(number).map_err(|_| "it is too large here".to_owned())
        },
        usize::to_string,
    );
    let seed = resolver.read(&raw.seed, |text| parsing::whole(text, 0, u64::MAX), u64::to_string);
    let ignore_eos = resolver.read_or(&raw.ignore_eos, Some(measures), parsing::boolean, bool::to_string);
    let apply_chat_template = resolver.choose(&raw.apply_chat_template);
    let on_bad_input = resolver.choose(&raw.on_bad_input);
    Some(Workload {
        dataset: dataset?,
        input_len: input_len?,
        output_len: output_len?,
        random_range_ratio: random_range_ratio?,
        num_prompts: num_prompts?,
        warmup: warmup?.unwrap_or(warmup_default),
        seed: seed?,
        ignore_eos: ignore_eos?.unwrap_or(measures),
        apply_chat_template: apply_chat_template?,
        on_bad_input: on_bad_input?,
        share: share?,
    })
}

fn dataset(resolver: &mut Resolver, raw: &Raw) -> Option<Dataset> {
    let kind: Option<DatasetKind> = resolver.choose(&raw.dataset);
    let path = resolver.read_open(&raw.dataset_path, parsing::path, |path| path.display().to_string());
    let sentence = match (kind?, path?) {
        (DatasetKind::Random, None) => return Some(Dataset::Random),
        (DatasetKind::ShareGpt, Some(path)) => return Some(sharegpt(raw, path)),
        (DatasetKind::Jsonl, Some(path)) => return Some(Dataset::Jsonl(path)),
        (DatasetKind::ShareGpt, None) => {
            "dataset is `sharegpt`, but dataset-path is missing; give the JSON file of conversations"
        }
        (DatasetKind::Jsonl, None) => "dataset is `jsonl`, but dataset-path is missing; give the file of JSON lines",
        (DatasetKind::Random, Some(_)) => {
            "dataset-path is given, but dataset is `random`, which reads no file; set dataset=jsonl or dataset=sharegpt, or \
             leave it out"
        }
    };
    resolver.errors.push(ConfigError::Together(sentence.to_owned()));
    None
}

fn sharegpt(raw: &Raw, path: PathBuf) -> Dataset {
    let reply_length = if raw.output_len.given.is_some() { ReplyLength::OutputLen } else { ReplyLength::Recorded };
    Dataset::ShareGpt { path, reply_length }
}

fn output_len(resolver: &mut Resolver, raw: &Raw, dataset: Option<&Dataset>) -> Option<NonZeroUsize> {
    if let Some(Dataset::ShareGpt { reply_length: ReplyLength::Recorded, .. }) = dataset {
        resolver.note(&raw.output_len, "the tokens of each recorded reply".to_owned(), Origin::Default);
        // Never used: every reply says itself.
        return Some(NonZeroUsize::MIN);
    }
    resolver.read(&raw.output_len, parsing::count, NonZeroUsize::to_string)
}

fn range_ratio(resolver: &mut Resolver, raw: &Raw, dataset: Option<&Dataset>) -> Option<f64> {
    let ratio = resolver.read(
        &raw.random_range_ratio,
        |text| parsing::number(text, "a number of at least 0 and below 1", |ratio| (0.0..1.0).contains(&ratio)),
        f64::to_string,
    )?;
    if ratio > 0.0 && dataset.is_some_and(|dataset| *dataset != Dataset::Random) {
        resolver.errors.push(ConfigError::Together(format!(
            "random-range-ratio is {ratio}, but dataset is not `random`, and its prompts have lengths of their own; leave \
             it out"
        )));
        return None;
    }
    Some(ratio)
}

/// The longest request must fit the longest sequence, where both are known before the model is.
pub(super) fn check_lengths(resolver: &mut Resolver, raw: &Raw, workload: &Workload, engine: &EngineConfig) {
    let Some(longest) = engine.max_model_len else { return };
    let output_len = workload.output_len;
    match workload.dataset {
        Dataset::Random => {
            let (input, output) = (*workload.input_lengths().end(), *workload.output_lengths().end());
            let sum = input + output;
            if sum > longest.get() {
                let spread =
                    if workload.random_range_ratio > 0.0 { " (the longest of random-range-ratio)" } else { "" };
                resolver.errors.push(ConfigError::Together(format!(
                    "input-len {input} + output-len {output} = {sum}{spread} is above max-model-len {longest}; lower one of \
                     the two or raise max-model-len"
                )));
            }
        }
        // A default may be too large without harm: lines and replies may all ask for less.
        Dataset::Jsonl(_) | Dataset::ShareGpt { .. } if raw.output_len.given.is_some() && output_len >= longest => {
            resolver.errors.push(ConfigError::Together(format!(
                "output-len {output_len} leaves no room for a prompt in max-model-len {longest}; lower the one or raise the \
                 other"
            )));
        }
        Dataset::Jsonl(_) | Dataset::ShareGpt { .. } => {}
    }
}

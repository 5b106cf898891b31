//! The workload from its keys: source, number and length of prompts.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use flashjob_config::{
    Choice, Dataset, EngineConfig, Origin, Repeats, ReplyLength, Share, SharedPrefixes, WarmUp, Workload,
};

use super::error::ConfigError;
use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;

/// Requests where neither the dataset nor the user says how many.
const NUM_PROMPTS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Prefixes of `dataset=prefix` where it is not said how many.
const PREFIX_COUNT: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// Regions at most.
const MOST_REPEATS: u64 = 100;

/// `dataset`, before the file is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DatasetKind {
    Random,
    Prefix,
    Sonnet,
    ShareGpt,
    Jsonl,
    Arithmetic,
}

impl Choice for DatasetKind {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("random", Self::Random),
        ("prefix", Self::Prefix),
        ("sonnet", Self::Sonnet),
        ("sharegpt", Self::ShareGpt),
        ("jsonl", Self::Jsonl),
        ("arithmetic", Self::Arithmetic),
    ];
}

/// Decides all keys of the workload but those of sampling.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw, share: Option<Share>) -> Option<Workload> {
    let show_count = |count: &NonZeroUsize| count.to_string();
    let input_len = resolver.read(&raw.input_len, parsing::count, show_count);
    let dataset = dataset(resolver, raw, input_len);
    let output_len = output_len(resolver, raw, dataset.as_ref());
    let random_range_ratio = range_ratio(resolver, raw, dataset.as_ref());
    let is_made_here = dataset.as_ref().is_some_and(|dataset| dataset.path().is_none());
    let prompts_default = is_made_here.then_some(NUM_PROMPTS);
    let num_prompts = resolver.read_or(&raw.num_prompts, prompts_default, parsing::count, show_count);
    // Prompts that measure are warmed up, and lengths are part of what they measure; the others want answers.
    let measures = dataset.as_ref().is_none_or(Dataset::measures);
    let warmup_default = WarmUp::Requests(usize::from(measures));
    let warmup = resolver.read_or(&raw.warmup, Some(warmup_default), warmup, |warmup| match warmup {
        WarmUp::Requests(number) => number.to_string(),
        WarmUp::Auto => "auto".to_owned(),
    });
    let repeats = repeats(resolver, raw, share);
    let least_accuracy = least_accuracy(resolver, raw, dataset.as_ref());
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
        repeats: repeats?,
        least_accuracy: least_accuracy?,
        seed: seed?,
        ignore_eos: ignore_eos?.unwrap_or(measures),
        apply_chat_template: apply_chat_template?,
        on_bad_input: on_bad_input?,
        share: share?,
    })
}

fn warmup(text: &str) -> Result<WarmUp, String> {
    if text == "auto" {
        return Ok(WarmUp::Auto);
    }
    let number = parsing::whole(text, 0, parsing::LARGEST_COUNT).map_err(|clause| format!("{clause}, or auto"))?;
    usize::try_from(number).map(WarmUp::Requests).map_err(|_| "it is too large here".to_owned())
}

fn repeats(resolver: &mut Resolver, raw: &Raw, share: Option<Share>) -> Option<Repeats> {
    let repeats = resolver.read(
        &raw.repeats,
        |text| {
            let number = parsing::whole(text, 0, MOST_REPEATS)?;
            let count = usize::try_from(number).ok().and_then(NonZeroUsize::new);
            Ok(count.map_or(Repeats::UntilClose, Repeats::Count))
        },
        |repeats| match repeats {
            Repeats::Count(count) => count.to_string(),
            Repeats::UntilClose => "0".to_owned(),
        },
    )?;
    if repeats != Repeats::ONCE && share.is_some_and(|share| share.count() > 1) {
        resolver.errors.push(ConfigError::Together(
            "repeats is not 1, but replicas share the prompts, and their regions would not run at the same time; set repeats=1 or \
             replica-count=1"
                .to_owned(),
        ));
        return None;
    }
    Some(repeats)
}

fn least_accuracy(resolver: &mut Resolver, raw: &Raw, dataset: Option<&Dataset>) -> Option<Option<f64>> {
    let least = resolver.read_open(
        &raw.least_accuracy,
        |text| parsing::number(text, "a number above 0 and at most 1", |share| share > 0.0 && share <= 1.0),
        f64::to_string,
    )?;
    if let (Some(least), Some(Dataset::Random | Dataset::Prefix(_) | Dataset::Sonnet | Dataset::ShareGpt { .. })) =
        (least, dataset)
    {
        resolver.errors.push(ConfigError::Together(format!(
            "least-accuracy is {least}, but the prompts of this dataset have no correct answers; set dataset=jsonl with \
             \"answer\" in its lines, dataset=arithmetic, or leave it out"
        )));
        return None;
    }
    Some(least)
}

fn dataset(resolver: &mut Resolver, raw: &Raw, input_len: Option<NonZeroUsize>) -> Option<Dataset> {
    let kind: Option<DatasetKind> = resolver.choose(&raw.dataset);
    let path = resolver.read_open(&raw.dataset_path, parsing::path, |path| path.display().to_string());
    let prefixes = prefixes(resolver, raw, kind, input_len);
    let sentence = match (kind?, path?) {
        (DatasetKind::Random, None) => return Some(Dataset::Random),
        (DatasetKind::Sonnet, None) => return Some(Dataset::Sonnet),
        (DatasetKind::Arithmetic, None) => return Some(Dataset::Arithmetic),
        (DatasetKind::Prefix, None) => return prefixes.map(Dataset::Prefix),
        (DatasetKind::ShareGpt, Some(path)) => return Some(sharegpt(raw, path)),
        (DatasetKind::Jsonl, Some(path)) => return Some(Dataset::Jsonl(path)),
        (DatasetKind::ShareGpt, None) => {
            "dataset is `sharegpt`, but dataset-path is missing; give the JSON file of conversations".to_owned()
        }
        (DatasetKind::Jsonl, None) => {
            "dataset is `jsonl`, but dataset-path is missing; give the file of JSON lines".to_owned()
        }
        (kind, Some(_)) => format!(
            "dataset-path is given, but dataset is `{}`, which reads no file; set dataset=jsonl or dataset=sharegpt, or leave \
             it out",
            kind.name()
        ),
    };
    resolver.errors.push(ConfigError::Together(sentence));
    None
}

/// The shared prefixes of `dataset=prefix`; `None` for other datasets, and where an error was recorded.
fn prefixes(
    resolver: &mut Resolver,
    raw: &Raw,
    kind: Option<DatasetKind>,
    input_len: Option<NonZeroUsize>,
) -> Option<SharedPrefixes> {
    let show_count = |count: &NonZeroUsize| count.to_string();
    let is_prefix = kind == Some(DatasetKind::Prefix);
    let half = input_len.filter(|_| is_prefix).and_then(|len| NonZeroUsize::new(len.get() / 2));
    let count = resolver.read_or(&raw.prefix_count, is_prefix.then_some(PREFIX_COUNT), parsing::count, show_count)?;
    let len = resolver.read_or(&raw.prefix_len, half, parsing::count, show_count)?;
    let share = resolver.read_or(
        &raw.prefix_share,
        is_prefix.then_some(1.0),
        |text| parsing::number(text, "a number above 0 and at most 1", |share| share > 0.0 && share <= 1.0),
        f64::to_string,
    )?;
    let kind = kind?;
    if !is_prefix {
        let given = [&raw.prefix_count, &raw.prefix_len, &raw.prefix_share].into_iter();
        for slot in given.filter(|slot| slot.given.is_some()) {
            resolver.errors.push(ConfigError::Together(format!(
                "{} is given, but dataset is `{}`, whose prompts share no prefix; set dataset=prefix, or leave it out",
                slot.key(),
                kind.name()
            )));
        }
        return None;
    }
    let input_len = input_len?;
    match len {
        Some(len) if len < input_len => Some(SharedPrefixes { count: count?, len, share: share? }),
        len => {
            let len = len.map_or(0, NonZeroUsize::get);
            resolver.errors.push(ConfigError::Together(format!(
                "prefix-len is {len}, which leaves no token of input-len={input_len} to tell prompts apart, or no prefix; it must be \
                 from 1 to one below input-len"
            )));
            None
        }
    }
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
        Dataset::Random | Dataset::Prefix(_) | Dataset::Sonnet => {
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
        Dataset::Jsonl(_) | Dataset::ShareGpt { .. } | Dataset::Arithmetic
            if raw.output_len.given.is_some() && output_len >= longest =>
        {
            resolver.errors.push(ConfigError::Together(format!(
                "output-len {output_len} leaves no room for a prompt in max-model-len {longest}; lower the one or raise the \
                 other"
            )));
        }
        Dataset::Jsonl(_) | Dataset::ShareGpt { .. } | Dataset::Arithmetic => {}
    }
}

//! The workload from its keys: source, number and length of prompts.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use flashjob_config::{
    Batch, Choice, Columns, Dataset, EngineConfig, OnBadInput, Origin, OutputOrder, Repeats, ReplyLength, Share,
    SharedPrefixes, WarmUp, Workload,
};

use super::error::ConfigError;
use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;

/// Requests where neither the dataset nor the user says how many.
const NUM_PROMPTS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Prefixes of `dataset=prefix` where it is not said how many.
const PREFIX_COUNT: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// Most lines of a shard: where each of their answers lies is kept in memory.
const MOST_SHARD_LINES: u64 = 1_000_000;

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
    let dataset = dataset?;
    let is_batch =
        matches!(dataset, Dataset::Jsonl(_)) && ignore_eos == Some(Some(false)) && repeats == Some(Repeats::ONCE);
    let on_bad_input_default = if is_batch { OnBadInput::Skip } else { OnBadInput::Fail };
    let on_bad_input =
        resolver.read_or(&raw.on_bad_input, Some(on_bad_input_default), parsing::choice, |how| how.name().to_owned());
    let batch = batch(resolver, raw, is_batch);
    let columns = columns(resolver, raw, &dataset);
    Some(Workload {
        dataset,
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
        on_bad_input: on_bad_input?.unwrap_or(on_bad_input_default),
        columns: columns?,
        share: share?,
        batch: batch?,
    })
}

/// Settings of the answers, where the prompts are a batch. `None`: an error was recorded.
fn batch(resolver: &mut Resolver, raw: &Raw, is_batch: bool) -> Option<Option<Batch>> {
    let lines = |text: &str| {
        let lines = parsing::whole(text, 1, MOST_SHARD_LINES)?;
        NonZeroU64::new(lines).ok_or_else(|| "it must be at least 1".to_owned())
    };
    let shard_lines = resolver.read_open(&raw.shard_lines, lines, NonZeroU64::to_string)?;
    let output_order =
        resolver.read_or(&raw.output_order, is_batch.then_some(OutputOrder::Input), parsing::choice, |order| {
            order.name().to_owned()
        })?;
    let max_errors = resolver.read_open(&raw.max_errors, |text| parsing::whole(text, 0, u64::MAX), u64::to_string)?;
    if is_batch {
        return Some(Some(Batch { shard_lines, output_order: output_order?, max_errors }));
    }
    let given = [&raw.shard_lines, &raw.output_order, &raw.max_errors];
    let mut given = given.into_iter().filter(|slot| slot.given.is_some()).peekable();
    if given.peek().is_none() {
        return Some(None);
    }
    for slot in given {
        resolver.errors.push(ConfigError::Together(format!(
            "{} is given, but this job answers no batch; set dataset=jsonl without ignore-eos and repeats, or leave it out",
            slot.key()
        )));
    }
    None
}

/// `dataset-columns`. `None`: an error was recorded.
fn columns(resolver: &mut Resolver, raw: &Raw, dataset: &Dataset) -> Option<Columns> {
    let show = |columns: &Columns| {
        columns.iter().map(|(field, column)| format!("{field}={column}")).collect::<Vec<_>>().join(" ")
    };
    let columns = resolver.read_open(&raw.dataset_columns, column_names, show)?;
    if columns.is_some() && !matches!(dataset, Dataset::Jsonl(_)) {
        resolver.errors.push(ConfigError::Together(
            "dataset-columns is given, but the entries of this dataset have fields of their own; set dataset=jsonl, or leave it out"
                .to_owned(),
        ));
        return None;
    }
    Some(columns.unwrap_or_default())
}

fn column_names(text: &str) -> Result<Columns, String> {
    let mut columns: Vec<(String, String)> = Vec::new();
    for word in text.split_whitespace() {
        let is_field =
            |field: &str| !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let pair = word.split_once('=').filter(|(field, column)| is_field(field) && !column.is_empty());
        // Not quoted: an address with a token may have come to the wrong key.
        let Some((field, column)) = pair else {
            return Err("it must be words FIELD=COLUMN, such as prompt=question, with fields of a request".to_owned());
        };
        if columns.iter().any(|(known, _)| known == field) {
            return Err(format!("it names the column of `{field}` twice"));
        }
        columns.push((field.to_owned(), column.to_owned()));
    }
    Ok(Columns::new(columns))
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

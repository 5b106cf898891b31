//! Sizes of steps for `flashjob profile`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::command::{Command, Profile};
use super::error::{ConfigError, Stop};
use super::flags::Profiling;
use super::keys::Raw;
use super::quoting::quoted;
use super::resolve;
use super::resolver::Resolver;

/// Sizes of a list at most: each takes seconds.
const MOST_SIZES: usize = 32;

/// Tokens and sequences of a step at most.
const LARGEST: usize = 1 << 20;

/// The command, or every reason why not.
pub(super) fn profile(asked: &Profiling, mut resolver: Resolver, raw: &Raw) -> Result<Command, Stop> {
    if raw.sweep.given.is_some() {
        resolver.errors.push(ConfigError::Together("profile times one configuration; leave sweep out".to_owned()));
    }
    let mut wrong = Vec::new();
    let mut list = |flag: &str, written: &str| {
        sizes(flag, written).map_err(|sentence| wrong.push(ConfigError::Usage(sentence))).unwrap_or_default()
    };
    let (batch_sizes, prompt_lens) =
        (list("--batch-sizes", &asked.batch_sizes), list("--prompt-lens", &asked.prompt_lens));
    let context_len = asked.context_len.trim().parse().ok().filter(|&length| length <= LARGEST);
    if context_len.is_none() {
        let sentence = format!(
            "--context-len is {}, but it is a number of tokens from 0 to {LARGEST}",
            quoted(&asked.context_len)
        );
        wrong.push(ConfigError::Usage(sentence));
    }
    resolver.errors.extend(wrong);
    let resolved = resolve::job(resolver, raw);
    match (resolved.job, context_len) {
        (Some(job), Some(context_len)) => {
            let output = asked.output.as_deref().map(PathBuf::from);
            Ok(Command::Profile(Box::new(Profile { job, batch_sizes, context_len, prompt_lens, output })))
        }
        _ => Err(Stop::Invalid(resolved.errors)),
    }
}

/// A list of sizes, which may be empty.
fn sizes(flag: &str, written: &str) -> Result<Vec<NonZeroUsize>, String> {
    let words: Vec<&str> = written.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let size = |word: &&str| {
        let size = word.parse::<NonZeroUsize>().ok().filter(|size| size.get() <= LARGEST);
        size.ok_or_else(|| format!("{flag} has {}, but sizes are numbers from 1 to {LARGEST}", quoted(word)))
    };
    match words.len() {
        0..=MOST_SIZES => words.iter().map(size).collect(),
        count => Err(format!("{flag} has {count} sizes; give {MOST_SIZES} at most")),
    }
}

//! Command-line words brought into one shape before clap reads them: `--key=value`, dashes only, UTF-8, each key once.
//!
//! clap stops at the first mistake and takes a following flag for a value; a job's user wants all mistakes at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::iter::Peekable;

use super::error::ConfigError;
use super::quoting::{quoted, quoted_value};

/// Keys that mean `true` when no value follows.
pub(super) const SWITCHES: [&str; 7] = [
    "enable-prefix-caching",
    "enforce-eager",
    "deterministic",
    "validate-weights",
    "measure-limits",
    "ignore-eos",
    "dry-run",
];

/// Flags that never take a value.
const BARE: [&str; 5] = ["--help", "-h", "--version", "-V", "--allow-different"];

/// Least similarity (Jaro–Winkler) of a wrong name and a known one that is suggested for it.
const ALIKE: f64 = 0.8;

/// The name in `names` that `wrong` was probably meant to be.
pub(super) fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Normalises `words`; `flags` are the known flags without dashes, `commands` the subcommands.
///
/// Words for clap are returned in order; mistakes are pushed to `errors` and left out.
pub(super) fn normalise(
    words: impl Iterator<Item = OsString>,
    flags: &[String],
    commands: &[String],
    errors: &mut Vec<ConfigError>,
) -> Vec<String> {
    let mut line = Line { words: (1..).zip(words).peekable(), flags, commands, errors };
    let mut normal: Vec<String> = Vec::new();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    while let Some((position, word)) = line.words.next() {
        let Some(text) = line.text(word, position) else { continue };
        if text == "--" {
            normal.push(text);
            normal.extend(line.words.by_ref().map(|(_, word)| word.to_string_lossy().into_owned()));
            break;
        }
        if !text.starts_with('-') || BARE.contains(&text.as_str()) {
            normal.push(text);
            continue;
        }
        // The same value twice is harmless: scripts append flags to those of a base.
        let Some((key, value)) = line.flag(&text) else { continue };
        match seen.get(&key) {
            None => {
                normal.push(format!("--{key}={value}"));
                seen.insert(key, value);
            }
            Some(first) if *first == value => {}
            Some(first) => {
                let (first, second) = (quoted_value(&key, first), quoted_value(&key, &value));
                line.errors.push(ConfigError::Twice { first, second, key });
            }
        }
    }
    normal
}

/// The remaining words, each with its position from 1, and the known flags and commands.
struct Line<'a, Words: Iterator<Item = (usize, OsString)>> {
    words: Peekable<Words>,
    flags: &'a [String],
    commands: &'a [String],
    errors: &'a mut Vec<ConfigError>,
}

impl<Words: Iterator<Item = (usize, OsString)>> Line<'_, Words> {
    /// The word at `position`, if it is text.
    fn text(&mut self, word: OsString, position: usize) -> Option<String> {
        let word = match word.into_string() {
            Ok(text) => return Some(text),
            Err(word) => word,
        };
        let lossy = word.to_string_lossy();
        let (what, shown) = match lossy.strip_prefix("--").and_then(|flag| flag.split_once('=')) {
            Some((name, value)) => {
                let key = name.replace('_', "-");
                (format!("flag --{key}"), quoted_value(&key, value))
            }
            None => (format!("argument {position}"), quoted(&lossy)),
        };
        self.errors.push(ConfigError::NotUtf8 { what, shown });
        None
    }

    /// The key and the value of a word that begins with a dash; the value may be the next word.
    fn flag(&mut self, text: &str) -> Option<(String, String)> {
        let (written, attached) = match text.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (text, None),
        };
        let key = written.trim_start_matches('-').replace('_', "-");
        if !is_flag(self.flags, written) {
            let nearest = nearest(&key, self.flags.iter().map(String::as_str)).map(|flag| format!("--{flag}"));
            let flag = quoted(written).trim_matches('`').to_owned();
            // Its value would be reported as one more mistake.
            self.errors.push(ConfigError::UnknownFlag { flag, nearest });
            if attached.is_none() {
                let commands = self.commands;
                self.words.next_if(|(_, word)| !word.to_string_lossy().starts_with('-') && !is_one_of(commands, word));
            }
            return None;
        }
        match attached {
            Some(value) => Some((key, value.to_owned())),
            None => self.value(&key).map(|value| (key, value)),
        }
    }

    /// The next word, unless it is a flag or (for a switch) cannot be meant for it.
    fn value(&mut self, key: &str) -> Option<String> {
        let is_switch = SWITCHES.contains(&key);
        let (flags, commands) = (self.flags, self.commands);
        let ends = self.words.peek().is_none_or(|(_, word)| {
            let text = word.to_string_lossy();
            let leaves_a_switch = text.starts_with('-') || is_one_of(commands, word);
            is_flag(flags, &text) || BARE.contains(&text.as_ref()) || (is_switch && leaves_a_switch)
        });
        if ends && is_switch {
            return Some("true".to_owned());
        }
        // Only the name is shown: the rest may be a secret.
        if ends {
            let name =
                |(_, word): &(usize, OsString)| quoted(word.to_string_lossy().split('=').next().unwrap_or_default());
            let followed_by = self.words.peek().map(name);
            self.errors.push(ConfigError::NoValue { key: key.to_owned(), followed_by });
            return None;
        }
        match self.words.next()?.1.into_string() {
            Ok(value) => Some(value),
            Err(word) => {
                let shown = quoted_value(key, &word.to_string_lossy());
                self.errors.push(ConfigError::NotUtf8 { what: format!("flag --{key}"), shown });
                None
            }
        }
    }
}

/// Returns whether `word` is a known flag, with or without a value attached.
fn is_flag(flags: &[String], word: &str) -> bool {
    let name = word.split('=').next().and_then(|name| name.strip_prefix("--"));
    name.is_some_and(|name| flags.iter().any(|flag| *flag == name.replace('_', "-")))
}

fn is_one_of(commands: &[String], word: &OsString) -> bool {
    commands.iter().any(|command| word == command.as_str())
}

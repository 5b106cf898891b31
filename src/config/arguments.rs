//! Command-line words brought into one shape before clap reads them: `--key=value`, dashes only, UTF-8, each key once.
//!
//! clap stops at the first mistake and takes a following flag for a value; a job's user wants all mistakes at once.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::error::ConfigError;
use super::redaction::{quoted, quoted_value};

/// Keys that mean `true` when no value follows.
pub(super) const SWITCHES: [&str; 2] = ["validate-weights", "ignore-eos"];

/// Flags that never take a value.
const BARE: [&str; 4] = ["--help", "-h", "--version", "-V"];

/// How alike a wrong and a right name must be (Jaro–Winkler) to be suggested.
const ALIKE: f64 = 0.8;

/// The name in `names` that `wrong` was probably meant to be.
pub(super) fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Normalises `words`; `flags` are the known ones without dashes, `commands` the subcommands.
///
/// Words that clap must see are returned in order; what is wrong is pushed to `errors` and left out.
pub(super) fn normalise(
    words: impl Iterator<Item = OsString>,
    flags: &[String],
    commands: &[String],
    errors: &mut Vec<ConfigError>,
) -> Vec<String> {
    let mut words = words.enumerate().peekable();
    let mut normal: Vec<String> = Vec::new();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    while let Some((index, word)) = words.next() {
        let text = match word.into_string() {
            Ok(text) => text,
            Err(word) => {
                let lossy = word.to_string_lossy();
                let (what, shown) = match lossy.strip_prefix("--").and_then(|flag| flag.split_once('=')) {
                    Some((key, value)) => {
                        let key = key.replace('_', "-");
                        (format!("flag --{key}"), quoted_value(&key, value))
                    }
                    None => (format!("argument {}", index + 1), quoted(&lossy)),
                };
                errors.push(ConfigError::NotUtf8 { what, shown });
                continue;
            }
        };
        if text == "--" {
            normal.push(text);
            normal.extend(words.by_ref().map(|(_, word)| word.to_string_lossy().into_owned()));
            break;
        }
        if !text.starts_with('-') || BARE.contains(&text.as_str()) {
            normal.push(text);
            continue;
        }
        let (written, attached) = match text.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (text.as_str(), None),
        };
        // What follows is this flag's value unless it is a flag or (for a flag that needs none) a command.
        let known = |word: &str| {
            let name = word.split('=').next().unwrap_or(word);
            name.strip_prefix("--").is_some_and(|name| flags.iter().any(|flag| *flag == name.replace('_', "-")))
        };
        if !known(written) {
            let nearest = nearest(&written.trim_start_matches('-').replace('_', "-"), flags.iter().map(String::as_str));
            errors.push(ConfigError::UnknownFlag {
                flag: quoted(written).trim_matches('`').to_owned(),
                nearest: nearest.map(|flag| format!("--{flag}")),
            });
            if attached.is_none() {
                let is_value = |word: &OsString| {
                    let word = word.to_string_lossy();
                    !word.starts_with('-') && !commands.iter().any(|command| *command == word)
                };
                words.next_if(|(_, word)| is_value(word));
            }
            continue;
        }
        let key = written.trim_start_matches('-').replace('_', "-");
        let is_switch = SWITCHES.contains(&key.as_str());
        let value = match attached {
            Some(value) => value,
            None => {
                let takes = |word: &OsString| {
                    let word = word.to_string_lossy();
                    let ends = known(&word) || BARE.contains(&word.as_ref());
                    !ends && !(is_switch && (word.starts_with('-') || commands.iter().any(|name| *name == word)))
                };
                match words.next_if(|(_, word)| takes(word)) {
                    Some((_, word)) => match word.into_string() {
                        Ok(value) => value,
                        Err(word) => {
                            let shown = quoted_value(&key, &word.to_string_lossy());
                            errors.push(ConfigError::NotUtf8 { what: format!("flag --{key}"), shown });
                            continue;
                        }
                    },
                    None if is_switch => "true".to_owned(),
                    None => {
                        let followed_by = words.peek().map(|(_, word)| quoted(&word.to_string_lossy()));
                        errors.push(ConfigError::NoValue { key, followed_by });
                        continue;
                    }
                }
            }
        };
        match seen.get(&key) {
            None => {
                normal.push(format!("--{key}={value}"));
                seen.insert(key, value);
            }
            Some(first) if *first == value => {}
            Some(first) => {
                let (first, second) = (quoted_value(&key, first), quoted_value(&key, &value));
                errors.push(ConfigError::Twice { first, second, key });
            }
        }
    }
    normal
}

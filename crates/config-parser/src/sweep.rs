//! `sweep`: values of some keys, and their combinations, each a job of its own that is planned before anything is loaded.
//!
//! A text becomes axes ([`words`], [`json`]), these become combinations, and [`plan()`] resolves each of them like a job without a sweep.

mod json;
mod order;
mod plan;
mod range;
mod sweepable;
mod words;

use std::collections::HashSet;

use flashjob_config::Origin;

use super::error::ConfigError;
use super::keys::{Raw, shown};
use super::parsing;
use super::quoting::quoted;
use super::resolver::Resolver;
pub(super) use plan::plan;

/// Most combinations of one job, whose results fit on a page and in a table.
const MOST_COMBINATIONS: usize = 1000;

/// Longest text in bytes: more than a thousand combinations take.
const LONGEST_BYTES: usize = 1 << 18;

/// Most mistakes that are listed, and reasons where no combination can run.
const MOST_REASONS: usize = 5;

/// Values of one combination by field, in the order of the keys.
type Values = Vec<(&'static str, String)>;

/// Keys that change together, with the values that they take.
struct Axis {
    /// Fields of the keys.
    fields: Vec<&'static str>,
    /// Texts for the fields, one combination of them a row.
    rows: Vec<Vec<String>>,
}

impl Axis {
    /// The axis of these rows, which come in groups; or the reason why there is none.
    fn collect(
        fields: Vec<&'static str>,
        groups: impl Iterator<Item = Result<Vec<Vec<String>>, String>>,
    ) -> Result<Self, String> {
        let name = joined(&fields);
        let mut rows = Vec::new();
        for group in groups {
            rows.extend(group?);
            if rows.len() > MOST_COMBINATIONS {
                return Err(format!("{name} has more than {MOST_COMBINATIONS} values"));
            }
        }
        if rows.is_empty() {
            return Err(format!("{name} has no values"));
        }
        if rows.iter().flatten().any(|text| text.trim().is_empty()) {
            return Err(format!("{name} has an empty value"));
        }
        // Two runs of one combination would differ in their number alone; several regions of one are what `repeats` is for.
        let mut seen = HashSet::new();
        match rows.iter().find(|row| !seen.insert(*row)) {
            Some(row) => Err(format!("{name} has the value {} twice", quoted(&row.join("/")))),
            None => Ok(Self { fields, rows }),
        }
    }
}

/// Keys that are linked, as they are written.
fn joined(fields: &[&str]) -> String {
    fields.iter().map(|field| shown(field)).collect::<Vec<_>>().join(",")
}

/// All values, or what is wrong with some of them.
fn all_or_mistakes<T>(results: impl Iterator<Item = Result<T, String>>) -> Result<Vec<T>, Vec<String>> {
    let (mut values, mut wrong) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(clause) => wrong.push(clause),
        }
        if wrong.len() == MOST_REASONS {
            break;
        }
    }
    if wrong.is_empty() { Ok(values) } else { Err(wrong) }
}

/// Sweep and dry run as they were given.
pub(super) struct Request {
    /// Values of each combination, in the order in which they were written.
    combinations: Vec<Values>,
    /// Source of the sweep.
    origin: Origin,
    /// The combinations are listed and not run.
    pub is_dry_run: bool,
}

/// Reads `sweep` and `dry-run`. `None`: an error was noted. `Some(None)`: a job without a sweep.
pub(super) fn read(resolver: &mut Resolver, raw: &Raw) -> Option<Option<Request>> {
    let is_dry_run = resolver.read(&raw.dry_run, parsing::boolean, bool::to_string);
    let Some(given) = &raw.sweep.given else {
        resolver.read_open(&raw.sweep, parsing::name, Clone::clone);
        if is_dry_run == Some(true) {
            resolver.errors.push(ConfigError::Together(
                "dry-run is true, but there is no sweep whose combinations it could list; leave it out: `flashjob check` shows what \
                 one job would do"
                    .to_owned(),
            ));
            return None;
        }
        return is_dry_run.map(|_| None);
    };
    if !resolver.check_reference(&raw.sweep, given) {
        return None;
    }
    match combinations(&given.text) {
        Ok(combinations) => {
            // Like any key, so that the settings of each combination say of which sweep it is.
            resolver.note(&raw.sweep, given.text.clone(), given.origin.clone());
            Some(Some(Request { combinations, origin: given.origin.clone(), is_dry_run: is_dry_run? }))
        }
        Err(clauses) => {
            let error = |clause| ConfigError::value("sweep", &given.text, &given.origin, clause);
            resolver.errors.extend(clauses.into_iter().map(error));
            None
        }
    }
}

/// All combinations that `text` asks for. The last key changes first, as in nested loops.
///
/// # Errors
/// Everything that is wrong, each as the rest of a sentence.
fn combinations(text: &str) -> Result<Vec<Values>, Vec<String>> {
    if text.len() > LONGEST_BYTES {
        return Err(vec![format!("it has {} bytes, above the {LONGEST_BYTES} that are read", text.len())]);
    }
    // No key begins with a bracket: what a text is meant as cannot be mistaken.
    match text.chars().next() {
        Some('[') => json::listed(text),
        Some('{') => product(&json::axes(text)?),
        _ => product(&words::axes(text)?),
    }
}

/// Every combination of a row of each axis.
fn product(axes: &[Axis]) -> Result<Vec<Values>, Vec<String>> {
    let fields: Vec<&'static str> = axes.iter().flat_map(|axis| axis.fields.iter().copied()).collect();
    let mut seen = HashSet::new();
    if let Some(field) = fields.iter().find(|field| !seen.insert(**field)) {
        return Err(vec![format!("{} stands there twice", shown(field))]);
    }
    // Counted before any is made: a few short ranges have more than memory could hold.
    let count = axes.iter().map(|axis| axis.rows.len() as u128).reduce(u128::saturating_mul);
    check_count(count.unwrap_or(0))?;
    let mut combinations: Vec<Values> = vec![Vec::new()];
    for Axis { fields, rows } in axes {
        let extended = |values: &Values| {
            let values = values.clone();
            rows.iter().map(move |row| {
                let more = fields.iter().copied().zip(row.iter().cloned());
                values.iter().cloned().chain(more).collect::<Values>()
            })
        };
        combinations = combinations.iter().flat_map(extended).collect();
    }
    Ok(combinations)
}

fn check_count(count: u128) -> Result<(), Vec<String>> {
    match count {
        0 => Err(vec!["it sweeps no key; give KEY=VALUE,VALUE".to_owned()]),
        _ if count > MOST_COMBINATIONS as u128 => Err(vec![format!(
            "it has {count} combinations, above the {MOST_COMBINATIONS} of one job; give fewer values, or start several jobs"
        )]),
        _ => Ok(()),
    }
}

//! Runs that measured different things: a ratio of their figures would say nothing about engine, machine or settings.

use std::path::Path;

use flashjob_results::Status;

use super::run::Run;

/// Reason for which a run cannot be compared with the first one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Incomparable {
    /// Place of the run in the comparison.
    pub run: usize,
    /// Clauses such as `input-len is 256 and not 128`.
    pub reasons: Vec<String>,
}

/// Settings that decide which prompts are run. The number of prompts is compared as it was counted: a setting may leave it open.
const PROMPT_SETTINGS: [&str; 11] = [
    "dataset",
    "dataset-path",
    "seed",
    "input-len",
    "output-len",
    "random-range-ratio",
    "prefix-count",
    "prefix-len",
    "prefix-share",
    "apply-chat-template",
    "replica-count",
];

/// Number formats of weights that are none of a quantised checkpoint.
const PLAIN_FORMATS: [&str; 3] = ["float32", "float16", "bfloat16"];

/// A property that runs must share: its name, and its value where it is known.
type Property<'a> = (&'a str, fn(&Run) -> Option<String>);

const COUNTED: [Property<'static>; 6] = [
    ("the model", model),
    ("quantisation", quantisation),
    ("the prefix cache", prefix_cache),
    ("the number of requests", |run| run.finished_requests.map(|count| count.to_string())),
    ("the number of input tokens", |run| run.input_tokens.map(|count| count.to_string())),
    ("the number of output tokens", |run| run.output_tokens.map(|count| count.to_string())),
];

/// All runs that cannot be compared with the first one, or with anything.
pub(super) fn incomparable(runs: &[Run]) -> Vec<Incomparable> {
    let Some((first, _)) = runs.split_first() else { return Vec::new() };
    let reasons = runs.iter().enumerate().map(|(run, candidate)| {
        let mut reasons: Vec<String> = not_measured(candidate).into_iter().collect();
        // A run without a measurement has no counts, and its settings explain nothing.
        if reasons.is_empty() && run > 0 && not_measured(first).is_none() {
            reasons = deviations(first, candidate);
        }
        Incomparable { run, reasons }
    });
    reasons.filter(|found| !found.reasons.is_empty()).collect()
}

/// The reason for which a run has no figures to compare.
fn not_measured(run: &Run) -> Option<String> {
    match run.status {
        Status::Finished if run.is_complete => None,
        Status::Finished => Some("it has finished without a complete measurement".to_owned()),
        Status::Failed | Status::Killed => {
            let error = run.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            Some(format!("it {}{error}", if run.status == Status::Failed { "failed" } else { "was killed" }))
        }
    }
}

/// Clauses on everything in which `run` measured something else than `first`.
fn deviations(first: &Run, run: &Run) -> Vec<String> {
    let mut clauses = Vec::new();
    let mut compare = |what: &str, first: Option<String>, other: Option<String>| {
        // Unknown of one of them, as where another version of flashjob does not write it, is no deviation.
        if let (Some(first), Some(other)) = (first, other)
            && first != other
        {
            clauses.push(format!("{what} is {other} and not {first}"));
        }
    };
    let setting = |run: &Run, key: &str| run.settings.get(key).map(|value| format!("`{value}`"));
    for key in PROMPT_SETTINGS {
        compare(key, setting(first, key), setting(run, key));
    }
    for (what, property) in COUNTED {
        compare(what, property(first), property(run));
    }
    clauses
}

/// Architecture and size: paths differ from machine to machine.
fn model(run: &Run) -> Option<String> {
    let backend = run.backend.as_ref()?;
    let parameters = backend.parameters?;
    Some(format!("{} with {parameters} parameters", backend.architecture))
}

fn quantisation(run: &Run) -> Option<String> {
    // Weights of a GGUF file may be numbers again in memory: then its name alone tells of their blocks.
    let model = run.settings.get("model").map(Path::new);
    if let Some(file) = model.filter(|model| model.extension().is_some_and(|extension| extension == "gguf")) {
        return Some(format!("that of {}", file.file_name()?.display()));
    }
    let backend = run.backend.as_ref()?;
    let of_weights = backend.weights_dtype().filter(|format| !PLAIN_FORMATS.contains(format));
    Some(backend.quantization().or(of_weights).unwrap_or("none").to_owned())
}

fn prefix_cache(run: &Run) -> Option<String> {
    let reported = run.backend.as_ref().and_then(|backend| backend.prefix_caching());
    let is_on = reported.or_else(|| run.settings.get("enable-prefix-caching")?.parse().ok())?;
    Some(if is_on { "on" } else { "off" }.to_owned())
}

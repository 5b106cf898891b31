//! The built binary from outside: what it prints, leaves behind, and exits with.

mod answers;
mod batch;
mod caching;
mod child_engine;
mod child_options;
mod compare;
mod data_parallel;
mod endings;
mod indices;
mod machines;
mod not_finite;
mod options;
mod profile;
mod prompts;
mod regions;
mod remote_batch;
mod replicas;
mod report;
mod results;
mod samples;
mod schedule;
mod sglang;
mod signals;
mod streams;
mod summary;
mod supervisor;
mod sweeps;
mod text_options;
mod uploads;
mod verify;
mod vllm;
pub(crate) mod whole;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::Flashjob as _;
use crate::support::process::Process;

/// A tiny model directory that is whole: weights, configuration, tokenizer.
pub(crate) fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-gqa")
}

/// Longer than any test waits for: a signal always arrives first.
pub(crate) const LONG: [&str; 3] = ["--input-len=8", "--output-len=480", "--num-prompts=20000"];

/// A job that keeps to itself: its results in `results`, its metrics on a free port. It does not measure its machine, which
/// takes a second.
pub(crate) fn job_without_model(results: &TempDir) -> Process {
    job_that_measures_limits(results).args(["--measure-limits=false"])
}

fn job_that_measures_limits(results: &TempDir) -> Process {
    serving_at(results, 0)
}

fn serving_at(results: &TempDir, port: u16) -> Process {
    Process::flashjob()
        .args([&format!("--metrics-port={port}"), "--metrics-linger-seconds=0", "--results-dir"])
        .args([results.path().join("out")])
        .env("DEVICE", "cpu")
}

/// The same on the tiny model.
fn job(results: &TempDir) -> Process {
    job_without_model(results).args(["--model".into(), tiny_model()])
}

/// The same with its metrics at `port`.
pub(crate) fn job_at(results: &TempDir, port: u16) -> Process {
    serving_at(results, port).args(["--measure-limits=false"]).args(["--model".into(), tiny_model()])
}

/// The figures of the roofline that `result` has, each at most 1. There are none, and a reason, where other work held the processors
/// up while limits were measured, or caches hold the model.
pub(crate) fn fractions_of_the_limit(result: &Value) -> Option<[f64; 3]> {
    let figures = ["roofline_fraction", "mfu", "mbu"].map(|name| result["metrics"][name].as_f64());
    let reason = result["measurement"]["roofline"].get("unknown_because");
    assert_eq!(reason.is_some(), figures == [None; 3], "{}", result["metrics"]);
    reason.is_none().then(|| figures.map(|figure| figure.filter(|figure| (0.0..=1.0).contains(figure)).unwrap()))
}

/// The answers of a job that [`job`] made: the shards of a batch one after the other, or `outputs.jsonl`.
pub(crate) fn answers_of(results: &TempDir) -> String {
    let folder = results.path().join("out/outputs");
    let Ok(files) = std::fs::read_dir(&folder) else {
        return std::fs::read_to_string(results.path().join("out/outputs.jsonl")).unwrap();
    };
    let mut shards: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    shards.retain(|path| path.to_str().unwrap().contains("outputs-") && path.extension().unwrap() == "jsonl");
    shards.sort();
    shards.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

/// `result.json` of a job that [`job`] made.
pub(crate) fn result(results: &TempDir) -> Value {
    let path = results.path().join("out/result.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

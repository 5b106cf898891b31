//! Prefix caching and the order of requests in whole jobs: defaults, reasons, what they save, and what is refused.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{answers_of, job, result};
use crate::support::process::Process;

/// Prefixes, in turn, of some two hundred tokens each, and lines with each of them.
const PREFIXES: usize = 4;
const LINES: usize = 24;

fn batch(folder: &TempDir) -> String {
    let line = |line: usize| {
        let prefix = format!("{} ", line % PREFIXES).repeat(80);
        format!("{}\n", json!({"prompt": format!("{prefix}line {line}"), "id": line, "max_tokens": 3}))
    };
    let path = folder.path().join("batch.jsonl");
    std::fs::write(&path, (0..LINES).map(line).collect::<String>()).unwrap();
    path.display().to_string()
}

fn answering(results: &TempDir, dataset: &str, others: &[&str]) -> Process {
    job(results).args(["--dataset=jsonl", "--dataset-path", dataset]).args(others)
}

/// `prefix_caching` of the result.
fn reason(results: &TempDir) -> Value {
    let result = result(results);
    let caching = result["prefix_caching"].clone();
    assert_eq!(caching["enabled"], result["backend"]["engine"]["prefix_caching"]);
    caching
}

#[test]
fn prefixes_are_cached_in_batches_and_not_in_measurements_and_the_result_says_why() {
    let folder = TempDir::new().unwrap();
    let dataset = batch(&folder);
    let lines = ["--dataset=jsonl", "--dataset-path", &dataset];
    let measured = ["--input-len=8", "--output-len=2", "--num-prompts=2"];
    for (words, enabled, reason_of_it) in [
        (&lines[..], true, "default of a batch"),
        (&[&lines[..], &["--enable-prefix-caching=false"]].concat(), false, "flag"),
        (&[&lines[..], &["--ignore-eos=true"]].concat(), false, "default of a measurement"),
        (&measured, false, "default of a measurement"),
        (&[&measured[..], &["--enable-prefix-caching"]].concat(), true, "flag"),
    ] {
        let results = TempDir::new().unwrap();
        let finished = job(&results).args(words).run().expect_code(0);
        assert_eq!(reason(&results), json!({"enabled": enabled, "reason": reason_of_it}), "{words:?}");
        let said = format!("prefix caching             {}, {reason_of_it}\n", if enabled { "on" } else { "off" });
        assert!(finished.stdout.contains(&said), "{words:?}: {}", finished.stdout);
    }
}

#[test]
fn answers_are_those_of_the_input_in_its_order_whatever_order_runs_and_groups_find_more() {
    let folder = TempDir::new().unwrap();
    let dataset = batch(&folder);
    let run = |schedule: &str| {
        let results = TempDir::new().unwrap();
        let schedule_flag = format!("--schedule={schedule}");
        // Room for what runs, and for a part of the prefixes.
        let others = [&schedule_flag, "--max-num-seqs=1", "--kv-cache-memory=400KB", "--shard-lines=5"];
        answering(&results, &dataset, &others).run().expect_code(0);
        let result = result(&results);
        assert_eq!(result["backend"]["engine"]["schedule"], schedule);
        let rate = result["metrics"]["prefix_cache_hit_rate"].as_f64().unwrap();
        let summary = std::fs::read(results.path().join("out/summary.json")).unwrap();
        let summary: Value = serde_json::from_slice(&summary).unwrap();
        assert_eq!(summary["job"]["prefix_cache_hit_rate"], rate);
        (answers_of(&results), rate)
    };
    let (answers, in_input_order) = run("input");
    let ids = answers.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_u64().unwrap());
    assert!(ids.eq(0..LINES as u64));
    let (grouped, in_groups) = run("prefix");
    assert!(grouped == answers, "answers differ in groups");
    assert!(in_groups > in_input_order, "{in_groups} of the prompts in groups, {in_input_order} in the input's order");
    assert!(run("longest").0 == answers, "answers differ with the longest first");
}

#[test]
fn an_order_without_effect_is_refused_by_name() {
    let results = TempDir::new().unwrap();
    for (words, sentence) in [
        (&["--backend=vllm", "--schedule=longest"][..], "schedule has no counterpart in vLLM"),
        (&["--backend=sglang", "--schedule=longest"], "schedule has no counterpart in SGLang"),
        (&["--schedule=prefix"], "schedule is prefix, but enable-prefix-caching is false"),
        (&["--schedule=shortest"], "schedule is `shortest` (flag --schedule)"),
    ] {
        let finished = job(&results).args(words).run().expect_code(2);
        assert!(finished.stderr.contains(sentence), "{words:?}: {finished}");
    }
}

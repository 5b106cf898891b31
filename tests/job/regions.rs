//! Repeated regions, warm-up, the steady window, warnings, built-in datasets, and answers that are held against correct ones.

use std::collections::BTreeSet;

use serde_json::Value;
use tempfile::TempDir;

use super::prompts::{answers, lines};
use super::{job, result};
use crate::support::process::Finished;

/// A run with `arguments` that ends with `code`, and its results.
fn run(arguments: &[&str], code: i32) -> (Finished, TempDir, Value) {
    let results = TempDir::new().unwrap();
    let finished = job(&results).args(["--log-format=text"]).args(arguments).run().expect_code(code);
    let result = result(&results);
    (finished, results, result)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn regions_are_repeated_with_other_prompts_and_their_spread_is_students() {
    let arguments = [
        "--input-len=8",
        "--output-len=20",
        "--num-prompts=12",
        "--repeats=3",
        "--seed=5",
        "--enable-prefix-caching=true",
    ];
    let (finished, results, result) = run(&arguments, 0);
    let repeats = &result["repeats"];
    assert_eq!((&repeats["confidence"], &repeats["stopped_by"]), (&0.95.into(), &"count".into()));
    let regions = repeats["regions"].as_array().unwrap();
    let seeds: Vec<u64> = regions.iter().map(|region| region["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [5, 6, 7]);
    let rates: Vec<f64> = regions.iter().map(|region| number(&region["metrics"]["output_tokens_per_second"])).collect();
    let mean = rates.iter().sum::<f64>() / 3.0;
    let deviation = (rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
    let summary = &repeats["summary"]["output_tokens_per_second"];
    // The table of any textbook: t(0.975, 2) = 4.303.
    let half_width = 4.302_652_7 * deviation / 3f64.sqrt();
    for (name, expected) in [("mean", mean), ("standard_deviation", deviation), ("half_width", half_width)] {
        let found = number(&summary[name]);
        assert!((found - expected).abs() <= expected * 1e-6, "{name}: {found}, not {expected}");
    }
    // Amounts are those of a region.
    let metrics = &result["metrics"];
    for (name, expected) in [
        ("total_output_tokens", 240.0),
        ("total_input_tokens", 96.0),
        ("requested_output_tokens", 240.0),
        ("regions", 3.0),
    ] {
        assert_eq!(number(&metrics[name]), expected, "{name}");
    }
    // No region finds anything of the one before it.
    assert_eq!(number(&metrics["prefix_cache_hit_tokens"]), 0.0);
    let requests = lines(&results, "requests.jsonl");
    let places: Vec<(u64, u64)> = requests
        .iter()
        .map(|request| (request["region"].as_u64().unwrap(), request["request"].as_u64().unwrap()))
        .collect();
    let expected: Vec<(u64, u64)> = (0..3).flat_map(|region| (0..12).map(move |request| (region, request))).collect();
    assert_eq!(places, expected);
    assert!(finished.stdout.contains("3 regions"), "{finished}");
}

#[test]
fn repetition_without_a_number_ends_by_its_interval_or_its_limit() {
    let (_, _, result) = run(&["--input-len=8", "--output-len=100", "--num-prompts=16", "--repeats=0"], 0);
    let repeats = &result["repeats"];
    let regions = repeats["regions"].as_array().unwrap().len();
    let summary = &repeats["summary"]["output_tokens_per_second"];
    let is_close = number(&summary["half_width"]) <= 0.02 * number(&summary["mean"]);
    match repeats["stopped_by"].as_str() {
        Some("interval") => assert!(is_close && (3..=10).contains(&regions), "{repeats}"),
        Some("limit") => assert!(!is_close && regions == 10, "{repeats}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_region_has_no_spread_and_no_number() {
    let (_, results, result) = run(&["--input-len=8", "--output-len=4", "--num-prompts=2"], 0);
    assert_eq!(
        (&result["repeats"], &result["warm_up"], &result["accuracy"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert!(lines(&results, "requests.jsonl").iter().all(|request| request.get("region").is_none()));
    for name in ["regions", "output_tokens_per_second_low", "output_tokens_per_second_per_gpu", "accuracy"] {
        assert_eq!(result["metrics"].get(name), None, "{name}");
    }
}

#[test]
fn an_automatic_warm_up_sees_each_size_and_is_not_measured() {
    let arguments = ["--input-len=8", "--output-len=40", "--num-prompts=24", "--max-num-seqs=8", "--warmup=auto"];
    let (_, _, result) = run(&arguments, 0);
    let warm_up = &result["warm_up"];
    let rounds = warm_up["rounds"].as_u64().unwrap();
    assert!((2..=8).contains(&rounds), "{warm_up}");
    assert_eq!(warm_up["requests"].as_u64(), Some(rounds * 8));
    assert!(warm_up["steps"].as_u64().unwrap() >= rounds * 8, "eight sequences shrink to one in 4 sizes: {warm_up}");
    assert!(warm_up["is_stable"].is_boolean());
    assert!(number(&result["metrics"]["phase_warm_up_seconds"]) > 0.0);
    assert_eq!(number(&result["metrics"]["total_output_tokens"]), 24.0 * 40.0);
}

#[test]
fn the_steady_window_lies_within_the_region() {
    let (_, _, result) = run(&["--input-len=8", "--output-len=100", "--num-prompts=12", "--max-num-seqs=8"], 0);
    let metrics = &result["metrics"];
    let [ramp_up, steady, tail, elapsed] =
        ["ramp_up_seconds", "steady_seconds", "tail_seconds", "elapsed_time"].map(|name| number(&metrics[name]));
    assert!(ramp_up > 0.0 && steady > 0.0 && tail > 0.0, "{metrics}");
    assert!((ramp_up + steady + tail - elapsed).abs() < 1e-6 * elapsed.max(1.0), "{metrics}");
    assert_eq!(number(&metrics["peak_running_requests"]), 8.0);
    // Of 12 requests 4 run alone at the end: they are the tail.
    let tokens = result["measurement"]["steady_window"]["output_tokens"].as_u64().unwrap();
    assert!((600..=800).contains(&tokens), "{tokens}");
}

#[test]
fn a_workload_that_is_too_small_is_named_with_one_that_is_enough() {
    // The blueprint's sample.
    let (finished, _, result) = run(&["--input-len=12", "--output-len=12", "--num-prompts=2", "--max-num-seqs=256"], 0);
    let warnings: Vec<&str> = result["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let [few, short] = warnings[..] else { panic!("{warnings:?}") };
    assert_eq!(
        few,
        "2 requests are fewer than 4 times max-num-seqs=256: much of the region is a batch that fills up or runs empty; \
         num-prompts=1024 would be enough"
    );
    assert!(short.contains("less than 10 s: its figures vary from run to run; num-prompts="), "{short}");
    for warning in [few, short] {
        assert!(finished.stdout.contains(warning) && finished.stderr.contains(warning), "{finished}");
    }
}

#[test]
fn a_cache_that_is_too_small_is_named_with_one_that_is_enough() {
    // Each sequence needs 3 blocks of 32 tokens, and there are 8 blocks or so.
    let bytes = {
        let (_, _, result) = run(&["--input-len=8", "--output-len=4", "--num-prompts=1", "--kv-cache-memory=1MiB"], 0);
        let engine = &result["backend"]["engine"];
        engine["kv_cache_bytes"].as_u64().unwrap() / engine["kv_blocks"].as_u64().unwrap()
    };
    let memory = format!("--kv-cache-memory={}", bytes * 8);
    let (_, _, result) = run(
        &["--input-len=60", "--output-len=30", "--num-prompts=64", "--max-num-seqs=16", "--max-model-len=96", &memory],
        0,
    );
    let warnings = result["warnings"].to_string();
    assert!(warnings.contains("the KV cache was full for"), "{warnings}");
    assert!(
        warnings.contains("of max-num-seqs=16 sequences running and others waiting; kv-cache-memory="),
        "{warnings}"
    );
}

#[test]
fn prompts_with_shared_prefixes_are_found_in_the_cache() {
    let arguments = [
        "--dataset=prefix",
        "--input-len=96",
        "--prefix-len=64",
        "--prefix-count=2",
        "--output-len=2",
        "--num-prompts=40",
        "--max-num-seqs=4",
        "--enable-prefix-caching=true",
    ];
    let (_, _, result) = run(&arguments, 0);
    let metrics = &result["metrics"];
    assert_eq!(number(&metrics["total_input_tokens"]), 40.0 * 96.0);
    // All prompts but those of the first steps find the 64 tokens of their prefix.
    let hits = number(&metrics["prefix_cache_hit_tokens"]);
    assert!((30.0 * 64.0..=38.0 * 64.0).contains(&hits), "{hits}");
}

#[test]
fn verses_and_sums_are_built_in() {
    let (_, _, sonnet) = run(&["--dataset=sonnet", "--input-len=300", "--output-len=3", "--num-prompts=5"], 0);
    assert_eq!(number(&sonnet["metrics"]["total_input_tokens"]), 1500.0);
    assert_eq!(number(&sonnet["metrics"]["total_output_tokens"]), 15.0);
    let (_, results, sums) = run(&["--dataset=arithmetic", "--output-len=5", "--num-prompts=6"], 0);
    // A model of random numbers knows no sums; what counts is that each is held against its result.
    assert_eq!(sums["accuracy"]["questions"], 6);
    let outputs = answers(&results);
    assert_eq!(outputs.len(), 6);
    assert!(outputs.iter().all(|line| line["correct"].is_boolean() && line["entry"].is_u64()), "{outputs:?}");
    let correct = outputs.iter().filter(|line| line["correct"] == true).count();
    assert_eq!(sums["accuracy"]["correct"], correct);
}

#[test]
fn too_few_correct_answers_fail_the_run_and_keep_its_result() {
    let folder = TempDir::new().unwrap();
    let dataset = folder.path().join("questions.jsonl");
    let questions = [
        r#"{"prompt": "a", "id": 1, "answer": {"regex": "(?s).*"}}"#,
        r#"{"prompt": "b", "id": 2, "answer": "never said"}"#,
        r#"{"prompt": "c", "id": 3, "answer": {"regex": ""}}"#,
        r#"{"prompt": "d", "id": 4}"#,
    ];
    std::fs::write(&dataset, questions.join("\n")).unwrap();
    let path = format!("--dataset-path={}", dataset.display());
    let arguments =
        |least: &'static str| ["--dataset=jsonl".to_owned(), path.clone(), "--output-len=4".into(), least.into()];
    for (least, code) in [("--least-accuracy=0.6", 0), ("--least-accuracy=0.7", 7)] {
        let arguments = arguments(least);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (finished, results, result) = run(&arguments, code);
        assert_eq!(result["accuracy"], serde_json::json!({"questions": 3, "correct": 2}));
        assert_eq!(result["exit_code"], code);
        assert!((number(&result["metrics"]["accuracy"]) - 2.0 / 3.0).abs() < 1e-12);
        let outputs = answers(&results);
        let correct: Vec<Option<bool>> =
            outputs.iter().map(|line| line.get("correct").and_then(Value::as_bool)).collect();
        assert_eq!(correct, [Some(true), Some(false), Some(true), None]);
        if code == 7 {
            let sentence = "2 of 3 answers are correct, a share of 0.6667 and below least-accuracy=0.7; its answers say which are not";
            assert_eq!(result["error"], sentence);
            assert!(finished.stderr.contains(sentence), "{finished}");
        }
    }
}

#[test]
fn regions_of_a_seed_are_the_same_prompts_again() {
    // Sampled tokens of region 1 from seed 3 are those of region 0 from seed 4.
    let dataset = TempDir::new().unwrap();
    let path = dataset.path().join("p.jsonl");
    std::fs::write(&path, "{\"prompt\": \"once\"}\n{\"prompt\": \"twice\", \"seed\": 9}\n").unwrap();
    let path = format!("--dataset-path={}", path.display());
    let texts = |seed: &str| {
        let arguments = ["--dataset=jsonl", &path, "--output-len=12", "--temperature=1", "--ignore-eos=true", seed];
        let (_, results, _) = run(&arguments, 0);
        let outputs = answers(&results);
        outputs.iter().map(|line| line["output"].to_string()).collect::<Vec<_>>()
    };
    let (three, four) = (texts("--seed=3"), texts("--seed=4"));
    assert_ne!(three[0], four[0]);
    assert_eq!(three[1], four[1], "a line with a seed of its own keeps it");
    assert_eq!(BTreeSet::from_iter(&three).len(), 2);
}

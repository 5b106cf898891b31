//! What a run leaves behind.

use tempfile::TempDir;

use super::{fractions_of_the_limit, job, job_that_measures_limits, result, tiny_model};

/// The blueprint's seven, by name.
const SEVEN: [&str; 7] = [
    "requests_per_second",
    "input_tokens_per_second",
    "output_tokens_per_second",
    "total_tokens_per_second",
    "elapsed_time",
    "total_input_tokens",
    "total_output_tokens",
];

#[test]
fn a_run_counts_exactly_and_says_what_ran() {
    let results = TempDir::new().unwrap();
    let finished = job(&results)
        .args(["--input-len", "12", "--output-len", "9", "--num-prompts", "7", "--dtype", "float32"])
        .run()
        .expect_code(0);
    let result = result(&results);
    assert_eq!(result["status"], "finished");
    for name in SEVEN {
        assert!(result["metrics"][name].as_f64().unwrap() > 0.0, "{name}: {}", result["metrics"]);
    }
    assert_eq!(result["metrics"]["total_input_tokens"], 84.0);
    assert_eq!(result["metrics"]["total_output_tokens"], 63.0);
    assert_eq!(
        (&result["backend"]["backend"], &result["backend"]["engine"]["dtype"]),
        (&"candle".into(), &"float32".into())
    );
    assert_eq!(result["backend"]["engine"]["device"], "cpu");
    let phases: Vec<&str> =
        result["phases"].as_array().unwrap().iter().map(|phase| phase["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["mount", "load", "warm_up", "measure", "publish"]);
    for line in ["total output tokens        63", "status                     finished"] {
        assert!(finished.stdout.contains(line), "no `{line}` in {}", finished.stdout);
    }
    let requests = std::fs::read_to_string(results.path().join("out/requests.jsonl")).unwrap();
    assert_eq!(requests.lines().count(), 7);
}

/// Empty, as templates of manifests write what is not given, is not given.
#[test]
fn a_lower_instruction_set_is_used_and_stated() {
    for (isa, expected) in [("portable", Some("portable")), ("", None)] {
        let results = TempDir::new().unwrap();
        job(&results).args(["--num-prompts=2", "--output-len=4"]).env("FLASHJOB_ISA", isa).run().expect_code(0);
        let result = result(&results);
        let (used, there) = (&result["backend"]["engine"]["kernels"], &result["environment"]["cpu_kernels"]);
        assert_eq!(used, &expected.map_or_else(|| there.clone(), Into::into), "{isa:?}");
        assert_eq!(result["settings"].get("flashjob-isa").is_some(), expected.is_some(), "{}", result["settings"]);
    }
}

#[test]
fn a_run_stands_beside_the_limits_of_its_machine() {
    let results = TempDir::new().unwrap();
    let finished = job_that_measures_limits(&results)
        .args(["--model".into(), tiny_model()])
        .args(["--input-len=12", "--output-len=30", "--num-prompts=20", "--dtype=float32"])
        .run()
        .expect_code(0);
    let result = result(&results);
    let figure =
        |name: &str| result["metrics"][name].as_f64().unwrap_or_else(|| panic!("{name}: {}", result["metrics"]));
    // The higher ones of before and after the run.
    let before = &result["backend"]["engine"]["limits"];
    assert!(figure("limit_flops_per_second") >= before["flops_per_second"].as_f64().unwrap());
    assert!(figure("limit_memory_bytes_per_second") >= before["bytes_per_second"].as_f64().unwrap());
    assert_eq!(finished.stderr.matches("the machine's limits are measured").count(), 2, "{}", finished.stderr);
    match fractions_of_the_limit(&result) {
        Some([fraction, ..]) => {
            assert!((fraction * figure("elapsed_time") / figure("roofline_seconds") - 1.0).abs() < 1e-9);
            assert!((0.0..=1.0).contains(&figure("roofline_compute_bound_share")));
            // Operations one after the other take no less than a step in which they overlap.
            assert!(figure("roofline_serial_seconds") >= figure("roofline_seconds") * 0.999);
            assert!(finished.stdout.contains("of the machine's limit"), "{}", finished.stdout);
        }
        None => {
            assert!(result["metrics"].get("roofline_seconds").is_none(), "{}", result["metrics"]);
            assert!(finished.stdout.contains("roofline                   unknown: "), "{}", finished.stdout);
            assert!(finished.stderr.contains("the roofline is unknown"), "{}", finished.stderr);
        }
    }
    // Layers: 2 · 2 · (64 · 16 · 12 + 3 · 64 · 96) operations a token; the last one but for its keys and values only
    // where logits are; logits: 2 · 64 · 288; attention: 2 layers · 4 · 4 heads · 16 for each query and key.
    let (tokens, rows) = (20.0 * (12.0 + 29.0), 20.0 * 30.0);
    let pairs = 20.0 * (1..=41).sum::<u32>() as f64;
    let expected = tokens * (4 * (64 * 16 * 12 + 3 * 64 * 96)) as f64
        - (tokens - rows) * (2 * (64 * 64 + 3 * 64 * 96)) as f64
        + rows * (2 * 64 * 288) as f64
        + pairs * (2 * 4 * 4 * 16) as f64;
    assert!((figure("flops_per_second") * figure("elapsed_time") / expected - 1.0).abs() < 1e-9);
}

/// While the first job has the directory, the second one touches nothing in it; a job that was killed leaves it free.
#[test]
fn two_jobs_do_not_share_a_directory() {
    let results = TempDir::new().unwrap();
    let mut first = job(&results).args(super::LONG).start();
    first.wait_for_stderr("\"phase\":\"measure\"");
    let refused = job(&results).run().expect_code(2);
    let said = format!("is in use by another job (process {})", first.job());
    assert!(refused.stderr.contains(&said) && refused.stderr.contains("results-dir="), "{refused}");
    let log = std::fs::read_to_string(results.path().join("out/flashjob.log")).unwrap();
    assert!(!log.contains("in use"), "{log}");
    assert!(!results.path().join("out/earlier").exists());
    first.signal_job(libc::SIGKILL);
    first.wait().expect_code(137);
    job(&results).args(["--input-len=4", "--output-len=4", "--num-prompts=2"]).run().expect_code(0);
}

#[test]
fn the_result_has_the_keys_of_vllm_bench_throughput() {
    let results = TempDir::new().unwrap();
    job(&results).args(["--input-len=4", "--output-len=4", "--num-prompts=3"]).run().expect_code(0);
    let result = result(&results);
    let elapsed = result["elapsed_time"].as_f64().unwrap();
    assert_eq!(result["num_requests"], 3);
    assert_eq!(result["total_num_tokens"], 24);
    assert!((result["tokens_per_second"].as_f64().unwrap() * elapsed - 24.0).abs() < 1e-9);
    assert!((result["requests_per_second"].as_f64().unwrap() * elapsed - 3.0).abs() < 1e-9);
}

#[test]
fn prefix_cache_hits_are_in_the_result_and_a_warm_up_makes_none() {
    let run = |more: &[&str]| {
        let results = TempDir::new().unwrap();
        let prompts = results.path().join("prompts.jsonl");
        let text = "one two three four five six seven eight nine ten ".repeat(12);
        let lines =
            ["left", "right", "up"].map(|end| serde_json::json!({"prompt": format!("{text}{end}")}).to_string());
        std::fs::write(&prompts, lines.join("\n")).unwrap();
        let finished = job(&results)
            .args(["--dataset=jsonl", "--dataset-path", &prompts.display().to_string(), "--output-len=2"])
            .args(["--max-num-seqs=1", "--warmup=3"])
            .args(more.iter().copied())
            .run()
            .expect_code(0);
        (result(&results), finished.stdout)
    };
    let (off, _) = run(&["--enable-prefix-caching=false"]);
    assert!(off["metrics"].get("prefix_cache_hit_tokens").is_none());
    assert_eq!(
        (&off["measurement"]["prefix_cache"], &off["backend"]["engine"]["prefix_caching"]),
        (&().into(), &false.into())
    );

    let (on, said) = run(&["--enable-prefix-caching"]);
    let tokens = on["metrics"]["total_input_tokens"].as_f64().unwrap();
    let hits = on["metrics"]["prefix_cache_hit_tokens"].as_f64().unwrap();
    // The first prompt finds nothing, the two others all whole blocks of 32 that they share with it.
    let block = 32.0;
    let most = 2.0 * tokens / 3.0;
    assert!(
        hits > 0.0 && hits % (2.0 * block) == 0.0 && hits < most && hits > most - 4.0 * block,
        "{hits} of {tokens}"
    );
    assert_eq!(on["metrics"]["prefix_cache_hit_rate"].as_f64().unwrap(), hits / tokens);
    assert_eq!(on["measurement"]["prefix_cache"]["hit_tokens"].as_f64(), Some(hits));
    assert_eq!(on["backend"]["engine"]["prefix_caching"], true);
    assert!(said.contains(&format!("found in the prefix cache  {hits} input tokens, ")), "{said}");
    assert_eq!(off["metrics"]["total_input_tokens"], tokens);
}

#[test]
fn the_same_seed_generates_the_same_and_another_one_does_not() {
    let generated = |seed: &str| {
        let results = TempDir::new().unwrap();
        let prompts = results.path().join("prompts.jsonl");
        std::fs::write(&prompts, "{\"prompt\": \"one two\"}\n{\"prompt\": \"three\"}\n").unwrap();
        job(&results)
            .args(["--dataset=jsonl", "--dataset-path", &prompts.display().to_string(), "--output-len=16"])
            .args(["--temperature=1", "--seed", seed])
            .run()
            .expect_code(0);
        super::answers_of(&results)
    };
    let first = generated("1");
    assert_eq!(first.lines().count(), 2);
    assert_eq!(first, generated("1"));
    assert_ne!(first, generated("2"));
}

#[test]
fn an_earlier_run_is_moved_aside_and_never_overwritten() {
    let results = TempDir::new().unwrap();
    for prompts in ["--num-prompts=2", "--num-prompts=3"] {
        job(&results).args(["--input-len=4", "--output-len=2", prompts]).run().expect_code(0);
    }
    assert_eq!(result(&results)["num_requests"], 3);
    let earlier: Vec<_> = std::fs::read_dir(results.path().join("out/earlier")).unwrap().collect();
    assert_eq!(earlier.len(), 1);
    let first = std::fs::read_to_string(earlier[0].as_ref().unwrap().path().join("result.json")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&first).unwrap()["num_requests"], 2);
}

#[test]
fn the_termination_message_holds_the_result_where_the_file_exists() {
    let results = TempDir::new().unwrap();
    let message = results.path().join("termination-log");
    std::fs::write(&message, "").unwrap();
    job(&results)
        .args(["--input-len=4", "--output-len=2", "--num-prompts=2"])
        .args(["--termination-message-path", &message.display().to_string()])
        .run()
        .expect_code(0);
    let text = std::fs::read_to_string(&message).unwrap();
    assert!(text.len() <= 4096);
    let message: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&message["status"], &message["exit_code"]), (&"finished".into(), &0.into()));
    assert_eq!(message["metrics"]["total_output_tokens"], 4.0);
}

//! Jobs with several engines that each hold the whole model.

use serde_json::Value;
use tempfile::TempDir;

use super::{LONG, job, result};

fn engine(result: &Value) -> &Value {
    &result["backend"]["engine"]
}

/// Lines of a file of the run.
fn lines(results: &TempDir, name: &str) -> Vec<Value> {
    let text = match name {
        "outputs.jsonl" => super::answers_of(results),
        name => std::fs::read_to_string(results.path().join("out").join(name)).unwrap(),
    };
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn answers_are_those_of_one_engine_and_counts_are_exact() {
    let dataset = TempDir::new().unwrap();
    let path = dataset.path().join("prompts.jsonl");
    let line = |number: usize| format!("{{\"prompt\": \"{}\"}}\n", "word ".repeat(1 + number % 9));
    std::fs::write(&path, (0..40).map(line).collect::<String>()).unwrap();
    let answers = |engines: &str| {
        let results = TempDir::new().unwrap();
        let finished = job(&results)
            .args(["--dataset=jsonl", "--dataset-path"])
            .args([&path])
            .args(["--output-len=12", "--max-num-seqs=4", "--threads=2", "--data-parallel-size", engines])
            .run()
            .expect_code(0);
        let result = result(&results);
        assert_eq!(engine(&result)["data_parallel_size"].to_string(), engines);
        assert!(finished.stderr.contains(&format!(r#""engines":{engines}"#)), "{}", finished.stderr);
        assert_eq!(result["measurement"]["complete"], true);
        assert!(result["metrics"]["peak_running_requests"].as_f64().unwrap() <= 4.0 * engines.parse::<f64>().unwrap());
        lines(&results, "outputs.jsonl")
    };
    let alone = answers("1");
    assert_eq!(alone.len(), 40);
    assert_eq!(answers("2"), alone);
}

#[test]
fn signals_end_all_engines_and_keep_what_was_measured() {
    let results = TempDir::new().unwrap();
    let mut running = job(&results).args(LONG).args(["--data-parallel-size=2"]).start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    running.signal(libc::SIGTERM);
    let finished = running.wait().expect_code(143);
    let result = result(&results);
    assert_eq!((&result["status"], &result["exit_code"]), (&"killed".into(), &143.into()), "{}", finished.stderr);
    assert_eq!(result["measurement"]["complete"], false);
}

#[test]
fn a_sweep_keeps_all_engines_loaded_and_regions_are_repeated() {
    let results = TempDir::new().unwrap();
    let finished = job(&results)
        .args(["--log-format=text", "--num-prompts=9", "--input-len=8", "--output-len=4", "--data-parallel-size=2"])
        .args(["--sweep", "max-num-seqs=1,2", "--repeats=2", "--warmup=auto"])
        .run()
        .expect_code(0);
    assert_eq!(finished.stderr.matches("all weights are in memory").count(), 1);
    for (number, places) in [(1, 1), (2, 2)] {
        let path = results.path().join(format!("out/{number:04}/result.json"));
        let result: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(
            (&engine(&result)["max_num_seqs"], &engine(&result)["data_parallel_size"]),
            (&places.into(), &2.into())
        );
        assert_eq!(result["repeats"]["regions"].as_array().map(Vec::len), Some(2));
        // Each of both engines has had a batch of its own.
        let requests = result["warm_up"]["requests"].as_u64().unwrap();
        let rounds = result["warm_up"]["rounds"].as_u64().unwrap();
        assert_eq!(requests, rounds * 2 * places);
    }
}

#[test]
fn engines_that_cannot_be_end_with_2_and_say_why() {
    let most = std::thread::available_parallelism().unwrap().get().max(16);
    for (words, sentence) in [
        (
            &["--data-parallel-size=300"][..],
            &*format!(
                "data-parallel-size=300 is above the {most} ranks that there can be here: on the CPU a rank is a thread; lower them, so \
                 that their product is {most} or less"
            ),
        ),
        (
            &["--data-parallel-size=30", "--tensor-parallel-size=2"],
            &*format!("data-parallel-size=30 times tensor-parallel-size=2 is above the {most} ranks"),
        ),
        (
            &["--backend=vllm", "--data-parallel-size=2"],
            "data-parallel-size has no counterpart in vLLM: offline it runs one engine in a process (LLM refuses data_parallel_size); jobs of \
             one GPU each divide prompts by replica-count; set it to 1, or use backend=candle",
        ),
        (
            &["--backend=vllm", "--vllm-args=--data-parallel-size=2"],
            "vllm-args holds `data_parallel_size`, which flashjob decides: leave it out: offline vLLM runs one engine in a process",
        ),
        (
            &["--backend=sglang", "--sglang-args=--dp-size=2"],
            "sglang-args holds `dp_size`, which flashjob decides: set data-parallel-size",
        ),
    ] {
        let results = TempDir::new().unwrap();
        let finished = job(&results).args(words).run().expect_code(2);
        assert!(finished.stderr.contains(sentence), "{words:?}: {}", finished.stderr);
    }
}

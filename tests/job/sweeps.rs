//! Sweeps: several combinations in one job, each with a result of its own.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{job, job_without_model, tiny_model};
use crate::support::Flashjob as _;
use crate::support::bucket_server::BucketServer;
use crate::support::mlflow_server;
use crate::support::process::{Finished, Process};

fn read(results: &TempDir, name: &str) -> Value {
    let path = results.path().join("out").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn sweeping(results: &TempDir, sweep: &str, others: &[&str]) -> Process {
    job(results).args(["--log-format=text", "--num-prompts=6"]).args(others).args(["--sweep", sweep])
}

fn times_loaded(finished: &Finished) -> usize {
    finished.stderr.matches("all weights are in memory").count()
}

fn states(results: &TempDir) -> Vec<(u64, String, Option<u64>)> {
    let sweep = read(results, "sweep.json");
    let combinations = sweep["combinations"].as_array().unwrap();
    combinations
        .iter()
        .map(|one| {
            (one["number"].as_u64().unwrap(), one["status"].as_str().unwrap().to_owned(), one["exit_code"].as_u64())
        })
        .collect()
}

#[test]
fn each_combination_has_a_result_and_a_model_is_loaded_once_for_those_that_share_it() {
    let results = TempDir::new().unwrap();
    let finished = sweeping(&results, "dtype=float32,bfloat16 max-num-seqs=1,4 input-len=8,16", &["--output-len=4"])
        .run()
        .expect_code(0);
    assert_eq!(states(&results).len(), 8);
    for (number, status, exit_code) in states(&results) {
        assert_eq!((status.as_str(), exit_code), ("finished", Some(0)), "{number}");
        let result = read(&results, &format!("{number:04}/result.json"));
        assert_eq!((&result["status"], &result["exit_code"]), (&json!("finished"), &json!(0)));
        let settings = |key: &str| result["settings"][key]["value"].as_str().unwrap().to_owned();
        let engine = &result["backend"]["engine"];
        assert_eq!(engine["dtype"], settings("dtype"), "{number}");
        assert_eq!(engine["max_num_seqs"].to_string(), settings("max-num-seqs"), "{number}");
        let input_tokens: f64 = settings("input-len").parse::<f64>().unwrap() * 6.0;
        assert_eq!(result["metrics"]["total_input_tokens"], input_tokens, "{number}");
        assert_eq!(
            result["metrics"]["peak_running_requests"]
                .as_f64()
                .map(|peak| peak <= settings("max-num-seqs").parse().unwrap()),
            Some(true)
        );
        assert_eq!(result["settings"]["input-len"]["origin"], "sweep");
        // The timeline is that of this combination, and its page has its plots.
        let timeline = read(&results, &format!("{number:04}/timeline.json"));
        let slices = timeline["slices"].as_array().unwrap().iter();
        let tokens: u64 = slices.map(|slice| slice["output_tokens"].as_u64().unwrap()).sum();
        assert_eq!(result["metrics"]["total_output_tokens"], tokens as f64, "{number}");
        let page = std::fs::read_to_string(results.path().join(format!("out/{number:04}/report.html"))).unwrap();
        assert!(page.contains("id=\"throughput\""), "{number}");
    }
    let page = std::fs::read_to_string(results.path().join("out/report.html")).unwrap();
    for part in ["id=\"pareto\"", "id=\"heat-map\"", "href=\"0008/report.html\"", "8 with a result"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!results.path().join("out/timeline.json").exists());
    // The whole: no figures of its own.
    let whole = read(&results, "result.json");
    assert_eq!((&whole["status"], &whole["measurement"]), (&json!("finished"), &Value::Null));
    assert_eq!(whole["settings"]["dtype"]["value"], "differs from combination to combination");
    assert_eq!(finished.stderr.matches("model is loaded").count(), 8, "each result names its engine");
    assert_eq!(times_loaded(&finished), 2, "{finished}");
    assert!(finished.stdout.contains("dtype=bfloat16 max-num-seqs=4 input-len=16"), "{finished}");
}

#[test]
fn what_fails_or_is_refused_is_recorded_and_the_sweep_goes_on() {
    let results = TempDir::new().unwrap();
    let sweep = json!([
        {"max-model-len": "32", "input-len": "64"},
        {"max-model-len": "64"},
        {"model": "/no/such/model"},
        {"input-len": "16"},
    ]);
    let model = tiny_model();
    let finished = job_without_model(&results)
        .args(["--log-format=text", "--input-len=8", "--output-len=4", "--num-prompts=2"])
        .args(["--model".into(), model])
        .args(["--sweep", &sweep.to_string()])
        .run()
        .expect_code(2);
    // The sources of one combination disagree with a flag: that is a mistake of the whole.
    assert!(finished.stderr.contains("model is swept"), "{finished}");

    let finished = sweeping(&results, "max-model-len=32,64 input-len=8,48", &["--output-len=4"]).run().expect_code(0);
    let mut found = states(&results);
    found.sort();
    let refused = found.iter().filter(|(_, status, code)| status == "refused" && *code == Some(2)).count();
    let good = found.iter().filter(|(_, status, code)| status == "finished" && *code == Some(0)).count();
    assert_eq!((refused, good), (1, 3), "{found:?}\n{finished}");

    // A kv cache that holds no sequence fails when it is loaded, and the next combination runs all the same.
    let results = TempDir::new().unwrap();
    let finished =
        sweeping(&results, "kv-cache-memory=1,4MiB", &["--input-len=8", "--output-len=4"]).run().expect_code(0);
    let found = states(&results);
    assert_eq!(
        found.iter().map(|(_, status, _)| status.as_str()).collect::<Vec<_>>(),
        ["failed", "finished"],
        "{finished}"
    );
    let failed = read(&results, "0001/result.json");
    assert_eq!(failed["status"], "failed");
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("KV cache")), "{failed}");

    // Where nothing finishes the job fails as its first combination did.
    let results = TempDir::new().unwrap();
    let finished = sweeping(&results, "kv-cache-memory=1,2", &["--input-len=8", "--output-len=4"]).run();
    assert_eq!(finished.code(), read(&results, "0001/result.json")["exit_code"].as_i64().map(|code| code as i32));
    assert!(finished.stderr.contains("no combination of the sweep finished"), "{finished}");
}

#[test]
fn regions_of_combinations_take_turns() {
    let results = TempDir::new().unwrap();
    sweeping(&results, "max-num-seqs=1,2,4", &["--input-len=8", "--repeats=3", "--output-len=40"]).run().expect_code(0);
    let mut starts: Vec<(f64, u64)> = Vec::new();
    for number in 1..=3u64 {
        let result = read(&results, &format!("{number:04}/result.json"));
        let regions = result["repeats"]["regions"].as_array().unwrap();
        assert_eq!(regions.len(), 3);
        assert_eq!(result["metrics"]["regions"], 3.0);
        starts.push((result["measurement"]["token_clock"]["started_unix_seconds"].as_f64().unwrap(), number));
        // Turns of others are no part of it.
        let measured: f64 = regions.iter().map(|region| region["metrics"]["elapsed_time"].as_f64().unwrap()).sum();
        let phase = result["metrics"]["phase_measure_seconds"].as_f64().unwrap();
        assert!(phase < measured * 2.0 + 0.2, "{phase} seconds for {measured}");
    }
    let log = std::fs::read_to_string(results.path().join("out/flashjob.log")).unwrap();
    let begun: Vec<&str> = log.lines().filter(|line| line.contains(" begins")).collect();
    assert_eq!(begun.len(), 3, "{log}");
    let ended = log.find("max-num-seqs=1: finished").unwrap();
    assert!(log.find("max-num-seqs=4 begins").unwrap() < ended, "the last begins before the first has ended");
}

#[test]
fn a_sweep_that_was_stopped_goes_on_where_it_was() {
    let results = TempDir::new().unwrap();
    let sweep = ["--sweep", "num-prompts=2,20000", "--input-len=8", "--output-len=480"];
    let mut running = job(&results).args(["--log-format=text"]).args(sweep).start();
    let first = results.path().join("out/0001/result.json");
    running.wait_for_stderr("num-prompts=20000 begins");
    running.signal(libc::SIGTERM);
    let finished = running.wait().expect_code(143);
    assert!(finished.stderr.contains("goes on with what is left"), "{finished}");
    let found = states(&results);
    assert_eq!(found.iter().map(|(_, status, _)| status.as_str()).collect::<Vec<_>>(), ["finished", "killed"]);
    let before = std::fs::metadata(&first).unwrap().modified().unwrap();

    let mut running = job(&results).args(["--log-format=text"]).args(sweep).start();
    running.wait_for_stderr("num-prompts=20000 begins");
    running.signal(libc::SIGTERM);
    let finished = running.wait().expect_code(143);
    assert!(finished.stderr.contains("was finished by an earlier attempt in this results-dir"), "{finished}");
    assert_eq!(std::fs::metadata(&first).unwrap().modified().unwrap(), before, "it was not run again");
    assert_eq!(states(&results)[0].1, "finished");
}

#[test]
fn combinations_are_runs_under_that_of_the_sweep() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let results = TempDir::new().unwrap();
    sweeping(&results, "max-num-seqs=1,4", &["--input-len=8", "--output-len=4"])
        .args(["--mlflow-uri", mlflow.uri(), "--experiment-name", "sweeps", "--run-name", "the sweep"])
        .run()
        .expect_code(0);
    let runs = mlflow.runs("sweeps");
    let parent = runs.iter().find(|run| run.name() == "the sweep").unwrap();
    let children: Vec<_> = runs.iter().filter(|run| run.tag("mlflow.parentRunId") == Some(parent.id())).collect();
    let mut names: Vec<&str> = children.iter().map(|run| run.name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["max-num-seqs=1", "max-num-seqs=4"]);
    for child in children {
        assert_eq!(child.status(), "FINISHED");
        assert!(child.metric("output_tokens_per_second").is_some());
        let artifact: Value = serde_json::from_slice(&mlflow.artifact(child, "result.json").unwrap()).unwrap();
        assert_eq!(artifact["settings"]["max-num-seqs"]["value"].as_str(), child.param("max-num-seqs"));
    }
    assert_eq!(parent.status(), "FINISHED");
    let sweep: Value = serde_json::from_slice(&mlflow.artifact(parent, "sweep.json").unwrap()).unwrap();
    assert_eq!(sweep, read(&results, "sweep.json"));
}

#[test]
fn a_sweep_and_its_combinations_go_to_the_output_bucket_or_wait_for_publish() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = BucketServer::start(folder.path());
    let output = ["--output-par", server.url(), "--output-prefix=sweeps/3/"];
    let short: Vec<&str> = ["--input-len=4", "--output-len=2"].into_iter().chain(output).collect();
    let in_bucket = || folder.path().join("sweeps/3");
    let expect_all = || {
        for directory in ["", "0001", "0002"] {
            for file in ["result.json", "report.html"] {
                let name = std::path::Path::new(directory).join(file);
                let sent = std::fs::read(in_bucket().join(&name)).unwrap_or_else(|error| panic!("{name:?}: {error}"));
                assert!(sent == std::fs::read(results.path().join("out").join(&name)).unwrap(), "{name:?}");
            }
        }
        assert!(in_bucket().join("sweep.json").is_file() && in_bucket().join("0002/requests.jsonl").is_file());
    };
    sweeping(&results, "max-num-seqs=1,4", &short).run().expect_code(0);
    expect_all();

    std::fs::remove_dir_all(in_bucket()).unwrap();
    std::fs::remove_dir_all(results.path().join("out")).unwrap();
    server.fault(json!({"kind": "status", "status": 401, "operation": "put"}));
    sweeping(&results, "max-num-seqs=1,4", &short).run().expect_code(6);
    assert!(!in_bucket().exists());
    server.no_faults();
    let out = results.path().join("out").display().to_string();
    Process::flashjob().args(["publish", &out]).args(output).run().expect_code(0);
    expect_all();
}

//! `summary.json` of a batch, for each way in which a job ends.

use std::time::Duration;

use flashjob_results::Summary;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{job, job_without_model};
use crate::support::bucket_server::BucketServer;
use crate::support::process::{Process, free_port};

/// A batch of `lines`, of which each tenth has an option that no engine has.
fn batch(folder: &TempDir, lines: usize, tokens: usize) -> String {
    let line = |line: usize| match line % 10 {
        9 => "{\"prompt\": \"x\", \"best_of\": 3}\n".to_owned(),
        _ => format!("{{\"prompt\": \"Word {line} of\", \"max_tokens\": {tokens}}}\n"),
    };
    let path = folder.path().join("batch.jsonl");
    std::fs::write(&path, (0..lines).map(line).collect::<String>()).unwrap();
    path.display().to_string()
}

fn answering(results: &TempDir, dataset: &str, others: &[&str]) -> Process {
    job(results).args(["--dataset=jsonl", "--dataset-path", dataset]).args(others)
}

/// The file as any reader of JSON sees it.
fn summary(results: &TempDir) -> Value {
    let directory = results.path().join("out");
    // It has a type, too.
    Summary::read(&directory).unwrap();
    serde_json::from_slice(&std::fs::read(directory.join("summary.json")).unwrap()).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn it_counts_lines_errors_tokens_shards_time_and_cost_and_is_in_the_bucket() {
    let (folder, results, bucket) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = BucketServer::start(bucket.path());
    let others = ["--shard-lines=10", "--price-per-hour=36", "--output-par", server.url(), "--output-prefix=b/"];
    answering(&results, &batch(&folder, 25, 4), &others).run().expect_code(0);
    let summary = summary(&results);
    let order =
        "schema_version flashjob_version status exit_code error started_at ended_at lines errors tokens shards job";
    let (mut expected, mut found): (Vec<&str>, _) = (order.split(' ').collect(), keys(&summary));
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!((&summary["schema_version"], &summary["status"]), (&json!(1), &json!("finished")));
    assert_eq!((&summary["exit_code"], &summary["error"]), (&json!(0), &Value::Null));
    assert_eq!(summary["lines"], json!({"total": 25, "answered": 25, "completed": 23, "missing": 0}));
    assert_eq!(summary["errors"], json!({"invalid": 0, "too_long": 0, "unsupported": 2, "non_finite": 0, "failed": 0}));
    assert_eq!(summary["tokens"]["output"], 23 * 4);
    assert_eq!(summary["shards"], json!({"finished": 3, "unfinished": 0}));
    let of_job = |key: &str| summary["job"][key].as_f64().unwrap();
    assert_eq!(of_job("lines"), 25.0);
    assert!(of_job("answering_seconds") > 0.0 && of_job("answering_seconds") < of_job("seconds"), "{summary}");
    let [most, cost] = [25.0 / of_job("answering_seconds"), of_job("seconds") / 100.0];
    // Lines that were refused before anything ran are not in the rate.
    assert!(of_job("lines_per_second") > 0.0 && of_job("lines_per_second") <= most + 1e-9, "{summary}");
    assert!((of_job("cost") / cost - 1.0).abs() < 1e-9, "{summary}");
    let sent = std::fs::read(bucket.path().join("b/summary.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&sent).unwrap(), summary);
}

#[test]
fn it_tells_what_a_signal_left_undone_and_what_the_next_job_did() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dataset = batch(&folder, 2000, 300);
    let settings = ["--shard-lines=50", "--max-num-seqs=8"];
    let running = answering(&results, &dataset, &settings).start();
    let manifest = results.path().join("out/outputs/manifest.jsonl");
    while std::fs::read_to_string(&manifest).map_or(0, |text| text.lines().count()) < 3 {
        std::thread::sleep(Duration::from_millis(10));
    }
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    let stopped = summary(&results);
    assert_eq!((&stopped["status"], &stopped["exit_code"]), (&json!("killed"), &json!(143)));
    let lines = |summary: &Value, key: &str| summary["lines"][key].as_u64();
    let (answered, missing) = (lines(&stopped, "answered").unwrap(), lines(&stopped, "missing"));
    assert!(answered >= 100 && stopped["shards"]["finished"].as_u64().unwrap() >= 2, "{stopped}");
    // Where all lines had been read.
    assert!(missing.is_none_or(|missing| missing + answered == 2000), "{stopped}");
    assert_eq!(stopped["job"]["lines"].as_u64(), Some(answered));

    answering(&results, &dataset, &settings).run().expect_code(0);
    let done = summary(&results);
    assert_eq!(done["lines"], json!({"total": 2000, "answered": 2000, "completed": 1800, "missing": 0}));
    assert_eq!(done["job"]["lines"].as_u64(), Some(2000 - answered));

    // And one that has nothing left to do.
    answering(&results, &dataset, &settings).run().expect_code(0);
    let idle = summary(&results);
    assert_eq!((&idle["lines"], &idle["errors"], &idle["tokens"]), (&done["lines"], &done["errors"], &done["tokens"]));
    assert_eq!((&idle["job"]["lines"], &idle["job"]["lines_per_second"]), (&json!(0), &Value::Null));
}

/// A failure with its exit code, and whether it came before answers were opened.
#[test]
fn each_failure_leaves_one_with_its_exit_code() {
    let folder = TempDir::new().unwrap();
    let dataset = batch(&folder, 30, 4);
    let closed = format!("http://127.0.0.1:{}", free_port());
    let nowhere = format!("{closed}/p/t0ken/n/ns/b/bucket/o/");
    let missing = folder.path().join("missing").display().to_string();
    type Case<'a> = (&'a str, &'a [&'a str], i32, bool);
    let cases: [Case<'_>; 6] = [
        ("too many errors", &["--max-errors=1"], 5, true),
        ("no such line", &["--on-bad-input=fail"], 2, true),
        ("no dataset", &["--dataset-path", &missing], 2, false),
        ("no model", &["--model", &missing], 4, false),
        // What it has of the batch must be known before anything is answered.
        ("no bucket", &["--output-par", &nowhere, "--storage-timeout=1"], 3, false),
        ("no MLflow", &["--mlflow-uri", &closed], 6, true),
    ];
    for (name, others, code, has_answers) in cases {
        let results = TempDir::new().unwrap();
        let given = |key: &str| others.contains(&key);
        let mut job = match given("--model") {
            true => job_without_model(&results),
            false => job(&results),
        };
        job = job.args(["--dataset=jsonl"]);
        if !given("--dataset-path") {
            job = job.args(["--dataset-path", &dataset]);
        }
        job.args(others).run().expect_code(code);
        let summary = summary(&results);
        assert_eq!(summary["exit_code"], code, "{name}: {summary}");
        let is_finished = code == 6;
        assert_eq!(summary["status"] == "finished", is_finished, "{name}: {summary}");
        assert_eq!(summary["error"].is_null(), is_finished, "{name}: {summary}");
        assert_eq!(summary.get("lines").is_some(), has_answers, "{name}: {summary}");
        if is_finished {
            assert_eq!(summary["lines"]["missing"], 0, "{name}: {summary}");
        }
    }
}

/// Whoever looks at the bucket alone.
#[test]
fn one_of_a_job_that_failed_or_was_stopped_is_in_the_bucket_too() {
    let (folder, bucket) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = BucketServer::start(bucket.path());
    let sent = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(bucket.path().join(name).join("summary.json")).unwrap()).unwrap()
    };
    let results = TempDir::new().unwrap();
    let output = ["--output-par", server.url(), "--output-prefix=failed/", "--max-errors=1"];
    answering(&results, &batch(&folder, 30, 4), &output).run().expect_code(5);
    assert_eq!(sent("failed"), summary(&results));

    let results = TempDir::new().unwrap();
    let output = ["--output-par", server.url(), "--output-prefix=stopped/", "--shard-lines=50", "--max-num-seqs=8"];
    let running = answering(&results, &batch(&folder, 5000, 300), &output).start();
    let manifest = results.path().join("out/outputs/manifest.jsonl");
    while std::fs::read_to_string(&manifest).map_or(0, |text| text.lines().count()) < 2 {
        std::thread::sleep(Duration::from_millis(10));
    }
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    assert_eq!(sent("stopped")["exit_code"], 143);
}

#[test]
fn a_replica_counts_its_own_lines() {
    let folder = TempDir::new().unwrap();
    let dataset = batch(&folder, 50, 3);
    let totals: Vec<u64> = (0..3)
        .map(|index| {
            let results = TempDir::new().unwrap();
            answering(&results, &dataset, &["--replica-count=3", "--shard-lines=4"])
                .env("JOB_COMPLETION_INDEX", index.to_string())
                .run()
                .expect_code(0);
            let lines = &summary(&results)["lines"];
            assert_eq!((&lines["answered"], &lines["missing"]), (&lines["total"], &json!(0)));
            lines["total"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(totals, [18, 16, 16]);
}

#[test]
fn a_measurement_has_none() {
    let results = TempDir::new().unwrap();
    job(&results).args(["--input-len=4", "--output-len=2", "--num-prompts=2"]).run().expect_code(0);
    assert!(!results.path().join("out/summary.json").exists());
}

//! The whole way: a bucket, a mount, inference, a real MLflow, the exit code.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use super::{job_without_model, result, tiny_model};
use crate::support::Flashjob as _;
use crate::support::bucket_server::BucketServer;
use crate::support::mlflow_server;
use crate::support::process::Process;
use crate::support::prometheus::Prometheus;

/// A bucket folder with the tiny model under the name that a hub would give it.
pub(crate) fn bucket_folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("tiny/llama");
    std::fs::create_dir_all(&model).unwrap();
    for file in std::fs::read_dir(tiny_model()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    folder
}

/// A job that mounts `url` under `results` and runs the tiny model from there.
pub(crate) fn mounting(results: &TempDir, url: &str) -> Process {
    let location = results.path().join("models");
    job_without_model(results)
        .args(["--model", "tiny/llama", "--par", url, "--mount-location", &location.display().to_string()])
        .args(["--storage-timeout=60"])
}

fn nothing_is_mounted_under(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&folder.display().to_string()), "{mounts}");
}

#[test]
fn a_run_is_found_in_mlflow_as_it_was_measured() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let (folder, results) = (bucket_folder(), TempDir::new().unwrap());
    let server = BucketServer::start(folder.path());
    let url = server.url().to_owned();
    let token = url.split("/p/").nth(1).unwrap().split('/').next().unwrap();
    let finished = mounting(&results, &url)
        .args(["--mlflow-uri", mlflow.uri(), "--experiment-name", "whole", "--run-name", "first"])
        .args(["--input-len=12", "--output-len=200", "--num-prompts=600"])
        .run()
        .expect_code(0);
    nothing_is_mounted_under(results.path());

    let result = result(&results);
    let runs = mlflow.runs("whole");
    let [run] = runs.as_slice() else { panic!("{} runs", runs.len()) };
    assert_eq!((run.name(), run.status()), ("first", "FINISHED"));
    assert!(run.end_time() >= run.start_time());
    for (name, value) in result["metrics"].as_object().unwrap() {
        let (logged, measured) = (run.metric(name).unwrap_or(f64::NAN), value.as_f64().unwrap());
        assert!((logged - measured).abs() <= measured.abs() * 1e-12, "{name}: {logged} is not {measured}");
    }
    assert_eq!(run.param("input-len"), Some("12"));
    assert_eq!(run.tag("backend"), Some("candle"));
    assert_eq!(run.tag("device"), Some("cpu"));
    let artifact = mlflow.artifact(run, "result.json").unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&artifact).unwrap(), result);
    let description = run.tag("mlflow.note.content").unwrap();
    assert!(
        description.starts_with("| figure | value | unit |\n|:--|--:|:--|\n| output tokens per second | "),
        "{description}"
    );
    for file in ["flashjob.log", "requests.jsonl", "timeline.json", "report.html"] {
        assert!(mlflow.artifact(run, file).is_some_and(|bytes| !bytes.is_empty()), "{file}");
    }
    let everything = format!("{}{}{}{:?}", finished.stdout, finished.stderr, result, run.0);
    assert!(!everything.contains(token), "the token is nowhere");
    assert!(result["inputs"][0]["source"].as_str().unwrap().contains("/p/<redacted>/n/"));
}

#[test]
fn progress_and_the_machine_are_seen_while_a_run_lasts() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let results = TempDir::new().unwrap();
    let mut running = super::job(&results)
        .args(["--mlflow-uri", mlflow.uri(), "--experiment-name", "live", "--run-name", "live"])
        .args(super::LONG)
        .start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    // Points come every two seconds; the run itself would last for minutes.
    let seen = |name: &str| mlflow.runs("live").first().map_or(0, |run| mlflow.history(run, name).len());
    while seen("live/output_tokens_per_second") < 2 || seen("system/cpu_utilization_percentage") < 1 {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    let run = &mlflow.runs("live")[0];
    assert_eq!((run.status(), run.end_time().is_some()), ("KILLED", true));
    let steps: Vec<i64> = mlflow.history(run, "live/generated_tokens").iter().map(|(_, step, _)| *step).collect();
    assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
    assert!(run.metric("total_output_tokens").unwrap() > 0.0, "what was measured so far is kept");
}

#[tokio::test]
async fn a_prometheus_that_scrapes_once_a_second_has_the_final_counts() {
    let port = crate::support::process::free_port();
    let Some(prometheus) = Prometheus::start(&format!("127.0.0.1:{port}")) else { return };
    let results = TempDir::new().unwrap();
    let running = Process::flashjob()
        .args(["--metrics-linger-seconds=60", "--input-len=8", "--output-len=100", "--num-prompts=300"])
        .args(["--metrics-port".into(), port.to_string(), "--model".into(), tiny_model().display().to_string()])
        .args(["--results-dir".into(), results.path().join("out").display().to_string()])
        .start();
    running.wait().expect_code(0);
    for (series, expected) in [
        ("flashjob_generated_tokens_total{phase='measure'}", 30_000.0),
        ("flashjob_prompt_tokens_total{phase='measure'}", 2_400.0),
        ("flashjob_requests_finished_total{phase='measure',reason='length'}", 300.0),
    ] {
        prometheus.eventually(&format!("last_over_time({series}[5m])"), expected).await;
    }
}

#[test]
fn a_run_that_fails_is_failed_in_mlflow_too() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let results = TempDir::new().unwrap();
    job_without_model(&results)
        .args(["--model=/nonexistent/model", "--mlflow-uri", mlflow.uri(), "--experiment-name", "failing"])
        .run()
        .expect_code(4);
    let run = &mlflow.runs("failing")[0];
    assert_eq!((run.status(), run.tag("exit_code")), ("FAILED", Some("4")));
    assert!(run.tag("error").unwrap().contains("/nonexistent/model"));
}

#[test]
fn what_could_not_be_sent_is_published_once() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let results = TempDir::new().unwrap();
    let nobody = format!("http://127.0.0.1:{}", crate::support::process::free_port());
    super::job(&results)
        .args(["--mlflow-uri", &nobody, "--experiment-name", "published", "--input-len=4", "--output-len=2"])
        .args(["--num-prompts=2"])
        .run()
        .expect_code(6);
    for word in ["delivered, ", "had been delivered, "] {
        let published = Process::flashjob()
            .args(["publish", &results.path().join("out").display().to_string(), "--mlflow-uri", mlflow.uri()])
            .run()
            .expect_code(0);
        assert!(published.stdout.contains(word), "{}", published.stdout);
    }
    let runs = mlflow.runs("published");
    assert_eq!(runs.len(), 1);
    assert_eq!((runs[0].status(), runs[0].metric("total_output_tokens")), ("FINISHED", Some(4.0)));
}

#[test]
fn results_go_to_the_output_bucket_or_wait_for_publish() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = BucketServer::start(folder.path());
    let output = ["--output-par", server.url(), "--output-prefix=runs/7/"];
    let short = ["--input-len=4", "--output-len=2", "--num-prompts=2"];
    super::job(&results).args(output).args(short).run().expect_code(0);
    let kept = std::fs::read(results.path().join("out/result.json")).unwrap();
    assert_eq!(std::fs::read(folder.path().join("runs/7/result.json")).unwrap(), kept);

    server.fault(json!({"kind": "status", "status": 401, "operation": "put"}));
    super::job(&results).args(output).args(short).run().expect_code(6);
    server.no_faults();
    std::fs::remove_dir_all(folder.path().join("runs")).unwrap();
    let out = results.path().join("out").display().to_string();
    Process::flashjob().args(["publish", &out]).args(output).run().expect_code(0);
    let published = std::fs::read(folder.path().join("runs/7/result.json")).unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&published).unwrap()["exit_code"], 6);

    // Broken off and begun again: what is there already is not sent twice.
    std::fs::remove_file(folder.path().join("runs/7/result.json")).unwrap();
    server.forget_requests();
    Process::flashjob().args(["publish", &out]).args(output).run().expect_code(0);
    assert!(folder.path().join("runs/7/result.json").is_file());
    assert_eq!(server.count("put"), 1);
}

#[test]
fn a_batch_that_lies_in_the_bucket_is_answered_there() {
    let (folder, results) = (bucket_folder(), TempDir::new().unwrap());
    let batch = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/batch.jsonl");
    std::fs::copy(batch, folder.path().join("tiny/batch.jsonl")).unwrap();
    let server = BucketServer::start(folder.path());
    let url = server.url().to_owned();
    mounting(&results, &url)
        .args(["--dataset=jsonl", "--dataset-path=tiny/batch.jsonl"])
        .args(["--output-par", &url, "--output-prefix=answers/"])
        .run()
        .expect_code(0);
    let answers = std::fs::read_to_string(folder.path().join("answers/outputs/outputs-00000.jsonl")).unwrap();
    assert_eq!(answers, super::answers_of(&results));
    assert!(folder.path().join("answers/outputs/manifest.jsonl").is_file());
    for (line, custom_id) in answers.lines().zip(["capital", "robot", "water"]) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["custom_id"], &line["error"]), (&custom_id.into(), &serde_json::Value::Null));
    }
}

/// The platform's own file, with what the blueprint's user fills in, and what a machine without GPUs cannot have.
#[test]
fn a_blueprint_runs_whichever_way_its_values_arrive() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let (folder, place) = (bucket_folder(), TempDir::new().unwrap());
    let server = BucketServer::start(folder.path());
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/offline-benchmark.json");
    let mut blueprint: serde_json::Value = serde_json::from_slice(&std::fs::read(sample).unwrap()).unwrap();
    let location = place.path().join("models").display().to_string();
    blueprint["input_object_storage"] =
        json!([{"par": server.url(), "mount_location": location, "volume_size_in_gbs": 1, "include": ["tiny/llama"]}]);
    blueprint["recipe_nvidia_gpu_count"] = json!(1);
    for entry in blueprint["recipe_container_env"].as_array_mut().unwrap() {
        let value = match entry["key"].as_str().unwrap() {
            "model" | "tokenizer" => "tiny/llama",
            "input-len" | "output-len" => "12",
            "num-prompts" => "2",
            "tensor-parallel-size" => "1",
            "max-model-len" => "256",
            "dtype" => "float16",
            "mlflow-uri" => mlflow.uri(),
            "experiment-name" => "blueprint",
            _ => continue,
        };
        entry["value"] = value.into();
    }
    let file = place.path().join("blueprint.json");
    std::fs::write(&file, blueprint.to_string()).unwrap();
    let variables: Vec<(String, String)> = blueprint["recipe_container_env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["key"].as_str().unwrap().to_owned(), entry["value"].as_str().unwrap().to_owned()))
        .collect();

    let storage = blueprint["input_object_storage"].to_string();
    for way in ["file", "variables", "arguments"] {
        let results = TempDir::new().unwrap();
        let mut process = job_without_model(&results);
        match way {
            "file" => process = process.args(["--blueprint".into(), file.clone()]),
            "variables" => {
                process = process.env("input_object_storage", &storage);
                for (key, value) in &variables {
                    process = process.env(key, value);
                }
            }
            _ => {
                process = process.args(["--input_object_storage", &storage]);
                for (key, value) in &variables {
                    process = process.args([format!("--{key}"), value.clone()]);
                }
            }
        }
        process.run().expect_code(0);
        let result = result(&results);
        assert_eq!(
            (&result["num_requests"], &result["metrics"]["total_output_tokens"]),
            (&2.into(), &24.0.into()),
            "{way}"
        );
        assert_eq!(result["backend"]["engine"]["dtype"], "float16", "{way}");
    }
    assert_eq!(mlflow.runs("blueprint").len(), 3);
}

#[test]
fn the_copy_is_as_good_as_the_mount_and_says_that_it_was_one() {
    let (folder, results) = (bucket_folder(), TempDir::new().unwrap());
    let server = BucketServer::start(folder.path());
    mounting(&results, server.url())
        .args(["--mount-mode=copy", "--input-len=4", "--output-len=2", "--num-prompts=2"])
        .run()
        .expect_code(0);
    assert_eq!(result(&results)["inputs"][0]["method"], "copy");
}

#[test]
fn a_par_that_expires_while_the_model_is_read_ends_with_3() {
    let (folder, results) = (bucket_folder(), TempDir::new().unwrap());
    let server = BucketServer::start(folder.path());
    server.fault(json!({"kind": "status", "status": 401, "operation": "get", "name_contains": "model.safetensors"}));
    let finished = mounting(&results, server.url()).run().expect_code(3);
    assert!(finished.stderr.contains("Make a new PAR that allows this"), "{}", finished.stderr);
    assert_eq!(result(&results)["exit_code"], 3);
    nothing_is_mounted_under(results.path());
}

#[test]
fn a_signal_while_the_bucket_is_listed_or_read_takes_the_mount_down() {
    for (fault, phase) in [
        (json!({"kind": "latency", "seconds": 600.0, "operation": "list"}), "mount"),
        (json!({"kind": "stall", "after_bytes": 1000, "name_contains": "model.safetensors"}), "load"),
    ] {
        let (folder, results) = (bucket_folder(), TempDir::new().unwrap());
        let server = BucketServer::start(folder.path());
        server.fault(fault);
        let mut running = mounting(&results, server.url()).start();
        running.wait_for_stderr(&format!("\"phase\":\"{phase}\""));
        running.signal(libc::SIGTERM);
        running.wait().expect_code(143);
        assert_eq!(result(&results)["status"], "killed", "{phase}");
        nothing_is_mounted_under(results.path());
    }
}

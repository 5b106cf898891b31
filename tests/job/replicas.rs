//! One job, several processes: an Indexed Job's pods share the prompts, and a real MLflow has one run above theirs.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::job;
use crate::support::Flashjob as _;
use crate::support::mlflow_server::{self, Run};
use crate::support::process::Process;

const REPLICAS: usize = 4;

/// A pod of an Indexed Job: its own results, the job's uid, its number.
fn replica(results: &TempDir, job_uid: &str, index: usize) -> Process {
    job(results)
        .args(["--replica-count", &REPLICAS.to_string()])
        .env("JOB_COMPLETION_INDEX", index.to_string())
        .env("JOB_UID", job_uid)
}

fn uid() -> String {
    format!("{:08x}-0000-4000-8000-{:012x}", rand::random::<u32>(), rand::random::<u32>())
}

fn lines(text: &[u8]) -> Vec<Value> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// What each of the four measured, added up here as a reader of the files would.
struct Sums {
    requests: Vec<u64>,
    output_tokens: f64,
    start: f64,
    end: f64,
    end_to_end_seconds: Vec<f64>,
}

fn sums(mlflow: &mlflow_server::MlflowServer, finished: &[&Run]) -> Sums {
    let mut sums = Sums { requests: vec![], output_tokens: 0.0, start: f64::MAX, end: 0.0, end_to_end_seconds: vec![] };
    for run in finished {
        let result: Value = serde_json::from_slice(&mlflow.artifact(run, "result.json").unwrap()).unwrap();
        let started = result["measurement"]["token_clock"]["started_unix_seconds"].as_f64().unwrap();
        sums.start = sums.start.min(started);
        sums.end = sums.end.max(started + result["measurement"]["elapsed_seconds"].as_f64().unwrap());
        for request in lines(&mlflow.artifact(run, "requests.jsonl").unwrap()) {
            sums.requests.push(request["request"].as_u64().unwrap());
            sums.output_tokens += request["output_tokens"].as_f64().unwrap();
            sums.end_to_end_seconds.push(request["end_to_end_seconds"].as_f64().unwrap());
        }
    }
    sums.requests.sort_unstable();
    sums.end_to_end_seconds.sort_by(f64::total_cmp);
    sums
}

#[test]
fn four_replicas_of_which_one_is_killed_become_one_run_with_the_figures_of_all() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let (experiment, job_uid) = ("replicas", uid());
    let places: Vec<TempDir> = (0..=REPLICAS).map(|_| TempDir::new().unwrap()).collect();
    let start = |index: usize, place: &TempDir| {
        replica(place, &job_uid, index)
            .args(["--mlflow-uri", mlflow.uri(), "--experiment-name", experiment, "--run-name", "together"])
            .args(["--input-len=8", "--output-len=200", "--num-prompts=2000"])
            .start()
    };
    let mut running: Vec<_> = (0..REPLICAS).map(|index| start(index, &places[index])).collect();
    // Killed as by the kernel, out of memory: it says nothing more, and its disk is gone with its pod.
    let mut victim = running.remove(2);
    let of_victim = || mlflow.runs(experiment).into_iter().find(|run| run.tag("flashjob.replica") == Some("2"));
    while of_victim().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    victim.wait_for_stderr("\"phase\":\"measure\"");
    victim.signal_job(libc::SIGKILL);
    victim.wait().expect_code(137);
    for replica in running {
        replica.wait().expect_code(0);
    }
    let parent = |runs: &[Run]| -> Run {
        let mut found = runs.iter().filter(|run| run.tag("flashjob.replica").is_none());
        let parent = found.next().expect("a parent");
        assert!(found.next().is_none(), "one parent");
        Run(parent.0.clone())
    };
    let waiting = parent(&mlflow.runs(experiment));
    assert_eq!((waiting.name(), waiting.status()), ("together", "RUNNING"));
    assert_eq!(waiting.metric("total_output_tokens"), None, "nobody has seen all of it yet");

    start(2, &places[REPLICAS]).wait().expect_code(0);
    let runs = mlflow.runs(experiment);
    let parent = parent(&runs);
    assert_eq!(parent.status(), "FINISHED");
    let children: Vec<&Run> = runs.iter().filter(|run| run.tag("flashjob.replica").is_some()).collect();
    assert_eq!(children.len(), REPLICAS + 1);
    for child in &children {
        assert_eq!(child.tag("mlflow.parentRunId"), Some(parent.id()), "{child:?}");
        assert_eq!(child.tag("flashjob.job_uid"), Some(job_uid.as_str()));
    }
    let killed: Vec<&&Run> = children.iter().filter(|run| run.status() == "KILLED").collect();
    assert!(killed.len() == 1 && killed[0].tag("flashjob.replica") == Some("2"), "{killed:?}");
    assert!(killed[0].tag("flashjob.end").unwrap().contains("another attempt began"), "{killed:?}");

    let finished: Vec<&Run> = children.into_iter().filter(|run| run.status() == "FINISHED").collect();
    let indices: BTreeSet<&str> = finished.iter().filter_map(|run| run.tag("flashjob.replica")).collect();
    assert_eq!(indices, BTreeSet::from(["0", "1", "2", "3"]));
    let Sums { requests, output_tokens, start, end, end_to_end_seconds } = sums(mlflow, &finished);
    assert_eq!(requests, (0..2000).collect::<Vec<u64>>(), "every prompt once");
    let near = |name: &str, expected: f64| {
        let found = parent.metric(name).unwrap_or(f64::NAN);
        assert!((found - expected).abs() <= expected.abs() * 1e-6, "{name}: {found} is not {expected}");
    };
    near("total_output_tokens", output_tokens);
    near("elapsed_time", end - start);
    near("output_tokens_per_second", output_tokens / (end - start));
    assert!(parent.metric("itl_seconds_p99").is_some_and(|seconds| seconds > 0.0), "over all replicas' tokens");
    assert_eq!((parent.param("input-len"), parent.param("num-prompts")), (Some("8"), Some("2000")));
    near("e2e_seconds_p50", (end_to_end_seconds[999] + end_to_end_seconds[1000]) / 2.0);
    near("e2e_seconds_p99", end_to_end_seconds[1979] + 0.01 * (end_to_end_seconds[1980] - end_to_end_seconds[1979]));
    let slowest = finished.iter().map(|run| run.metric("output_tokens_per_second").unwrap()).fold(f64::MAX, f64::min);
    near("replica_output_tokens_per_second_min", slowest);
    for metric in parent.keys("metrics") {
        assert_eq!(mlflow.history(&parent, metric).len(), 1, "{metric} is written once");
    }
    assert_eq!(parent.end_time(), finished.iter().map(|run| run.end_time()).max().unwrap());
}

/// The results of a replica could not be sent; whoever publishes them completes the job, once.
#[test]
fn a_replica_that_is_published_later_completes_the_job() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let (experiment, job_uid) = ("replicas published", uid());
    let nobody = format!("http://127.0.0.1:{}", crate::support::process::free_port());
    let places: Vec<TempDir> = (0..REPLICAS).map(|_| TempDir::new().unwrap()).collect();
    for (index, place) in places.iter().enumerate() {
        let (uri, code) = if index == 1 { (nobody.as_str(), 6) } else { (mlflow.uri(), 0) };
        replica(place, &job_uid, index)
            .args(["--mlflow-uri", uri, "--experiment-name", experiment])
            .args(["--input-len=4", "--output-len=2", "--num-prompts=9"])
            .timeout(std::time::Duration::from_secs(120))
            .run()
            .expect_code(code);
    }
    let parent = || mlflow.runs(experiment).into_iter().find(|run| run.tag("flashjob.replica").is_none()).unwrap();
    assert_eq!((parent().status(), parent().metric("total_output_tokens")), ("RUNNING", None));
    // An attempt of the same replica that was ended before its files had arrived: nothing is taken of it.
    let tags = [("flashjob.job_uid", job_uid.as_str()), ("flashjob.replica", "1")];
    let tags = tags.map(|(key, value)| json!({"key": key, "value": value}));
    let experiment_id = mlflow.experiment_id(experiment).unwrap();
    let lost = json!({"experiment_id": experiment_id, "start_time": 1, "run_name": "lost", "tags": tags});
    let lost = mlflow.call("POST", "runs/create", Some(lost))["run"]["info"]["run_id"].clone();
    mlflow.call("POST", "runs/update", Some(json!({"run_id": lost, "status": "FINISHED", "end_time": 2})));
    for _ in 0..2 {
        let out = places[1].path().join("out").display().to_string();
        Process::flashjob().args(["publish", &out, "--mlflow-uri", mlflow.uri()]).run().expect_code(0);
        assert_eq!((parent().status(), parent().metric("total_output_tokens")), ("FINISHED", Some(18.0)));
    }
    assert_eq!(mlflow.history(&parent(), "total_output_tokens").len(), 1);
}

#[test]
fn replicas_answer_exactly_as_one_process_would() {
    let batch = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/prompts.jsonl");
    let prompts = std::fs::read_to_string(batch).unwrap();
    let folder = TempDir::new().unwrap();
    let dataset = folder.path().join("prompts.jsonl");
    // Seven good lines and a bad one among them, so that shares differ in length.
    let line = prompts.lines().next().unwrap();
    let seven = [line, line, "{\"nonsense\": 1}", line, line, line, line, line].join("\n");
    std::fs::write(&dataset, seven).unwrap();
    let with = |process: Process| {
        process
            .args(["--dataset=jsonl", "--dataset-path", &dataset.display().to_string(), "--on-bad-input=skip"])
            .args(["--temperature=1", "--output-len=12", "--seed=5"])
    };
    let outputs = |results: &TempDir| super::answers_of(results);
    let alone = TempDir::new().unwrap();
    with(job(&alone)).run().expect_code(0);
    let mut together: Vec<(u64, String)> = Vec::new();
    for index in 0..REPLICAS {
        let results = TempDir::new().unwrap();
        with(replica(&results, &uid(), index)).run().expect_code(0);
        let answers = outputs(&results);
        together.extend(answers.lines().map(|answer| {
            let line = serde_json::from_str::<Value>(answer).unwrap()["line"].as_u64().unwrap();
            (line, answer.to_owned())
        }));
    }
    together.sort();
    let expected = outputs(&alone);
    let answers: Vec<&str> = together.iter().map(|(_, answer)| answer.as_str()).collect();
    assert_eq!(answers, expected.lines().collect::<Vec<_>>(), "the same answers, sampled ones included");
    assert_eq!(expected.lines().count(), 8);
    let texts: BTreeSet<&str> = expected.lines().filter_map(|line| line.split("\"output\":").nth(1)).collect();
    assert!(texts.len() > 1, "sampling shows: {expected}");
}

#[test]
fn a_job_that_died_is_ended_by_the_next_one_in_its_directory() {
    let Some(mlflow) = mlflow_server::shared() else { return };
    let results = TempDir::new().unwrap();
    let with = |name: &str| {
        job(&results).args(["--mlflow-uri", mlflow.uri(), "--experiment-name", "died", "--run-name", name])
    };
    let mut died = with("died").args(super::LONG).start();
    died.wait_for_stderr("\"phase\":\"measure\"");
    died.signal_job(libc::SIGKILL);
    died.wait().expect_code(137);
    with("next").args(["--input-len=4", "--output-len=2", "--num-prompts=2"]).run().expect_code(0);
    let mut found: Vec<(String, String)> =
        mlflow.runs("died").iter().map(|run| (run.name().to_owned(), run.status().to_owned())).collect();
    found.sort();
    assert_eq!(found, [("died".into(), "KILLED".into()), ("next".into(), "FINISHED".into())]);
}

//! `flashjob publish DIR`: whatever state a job left its record in.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flashjob_mlflow::{Outcome, RunStatus, Tracker, publish};
use serde_json::json;

use super::fault_proxy::{Fault, FaultProxy};
use super::{LONG, access, delivered, end, pairs, publish_one, spec, spooled, tracking, unique};
use crate::support::mlflow_server;

/// Nobody answers here.
const AWAY: &str = "http://127.0.0.1:1";

/// Leaves a finished run in `results_dir` that no server has.
async fn leave_a_run(results_dir: &Path, experiment: &str, run_name: &str) {
    let mut tracker = Tracker::start(&tracking(AWAY, experiment), &spec(run_name), results_dir).unwrap();
    tracker.metric("live", 1.0, 1);
    spooled(tracker.finish(end(RunStatus::Finished, &[("final", 2.0)]), Duration::from_millis(100)).await);
}

/// The one run's folder.
fn folder(results_dir: &Path) -> PathBuf {
    let mut folders = std::fs::read_dir(results_dir.join("mlflow")).unwrap();
    folders.next().unwrap().unwrap().path()
}

#[tokio::test]
async fn a_killed_job_is_recorded_as_killed_with_what_it_had_measured() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("killed");
    let results = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(&tracking(server.uri(), &experiment), &spec("killed"), results.path()).unwrap();
    for step in 0..3 {
        tracker.metric("live", 1.5, step);
    }
    while server.runs(&experiment).is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // While the job lives, its run is its own.
    assert_eq!(publish_one(results.path(), server.uri()).await, Outcome::StillRunning);
    drop(tracker);
    // A last line that the process did not finish.
    let journal = folder(results.path()).join("journal.jsonl");
    let mut text = std::fs::read_to_string(&journal).unwrap();
    text.push_str("{\"metric\":\"live\",\"va");
    std::fs::write(&journal, text).unwrap();

    let outcome = publish_one(results.path(), server.uri()).await;
    let Outcome::Delivered { link, notes } = outcome else { panic!("{outcome:?}") };
    assert!(notes[0].contains("died before its end"), "{notes:?}");
    let mut runs = server.runs(&experiment);
    let (run, others) = (runs.remove(0), runs);
    assert!(others.is_empty() && run.id() == link.run_id && run.status() == "KILLED", "{run:?}");
    let live = server.history(&run, "live");
    assert_eq!(live.len(), 3);
    assert_eq!(run.end_time(), live.iter().map(|(_, at, _)| *at).max(), "it ended when it last said something");
}

#[tokio::test]
async fn two_publishers_at_once_make_one_run() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("two");
    let results = tempfile::tempdir().unwrap();
    leave_a_run(results.path(), &experiment, "once").await;
    let proxy = FaultProxy::before(server.uri(), |_| Fault::Slow(Duration::from_millis(50))).await;
    let (first, second) =
        tokio::join!(publish_one(results.path(), &proxy.uri), publish_one(results.path(), &proxy.uri));
    assert_eq!((server.runs(&experiment).len(), proxy.count("runs/create")), (1, 1));
    let is_delivered = |outcome: &Outcome| matches!(outcome, Outcome::Delivered { .. });
    let is_already = |outcome: &Outcome| matches!(outcome, Outcome::AlreadyDelivered { .. });
    let outcomes = [first, second];
    assert!(outcomes.iter().any(is_delivered) && outcomes.iter().any(is_already), "{outcomes:?}");
}

#[tokio::test]
async fn several_runs_in_one_directory_are_each_sent_once() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("several");
    let results = tempfile::tempdir().unwrap();
    leave_a_run(results.path(), &experiment, "first").await;
    let mut tracker = Tracker::start(&tracking(server.uri(), &experiment), &spec("sent"), results.path()).unwrap();
    delivered(tracker.finish(end(RunStatus::Finished, &[]), LONG).await);
    drop(tracker);
    leave_a_run(results.path(), &experiment, "second").await;
    // Folders that are not ours, and one that a job left before it wrote anything.
    std::fs::create_dir_all(results.path().join("mlflow/not a key")).unwrap();
    std::fs::create_dir_all(results.path().join("mlflow/empty")).unwrap();

    // A directory can be moved before it is published.
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("moved");
    std::fs::rename(results.path(), &moved).unwrap();
    let published = publish(&moved, &access(Some(server.uri())), LONG).await.unwrap();
    let delivered = published.iter().filter(|run| matches!(run.outcome, Outcome::Delivered { .. })).count();
    assert_eq!((published.len(), delivered), (3, 2), "{published:?}");
    let mut names: Vec<String> = server.runs(&experiment).iter().map(|run| run.name().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["first", "second", "sent"]);
}

#[tokio::test]
async fn a_directory_without_a_record_is_said_to_be_one() {
    let results = tempfile::tempdir().unwrap();
    let error = publish(results.path(), &access(None), LONG).await.unwrap_err().to_string();
    assert!(error.contains("holds no run recorded for MLflow"), "{error}");
    let missing = results.path().join("missing");
    let error = publish(&missing, &access(None), LONG).await.unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

#[tokio::test]
async fn a_damaged_record_is_named_and_harms_no_other() {
    let Some(server) = mlflow_server::shared() else { return };
    for (file, content, expected) in [
        ("run.json", "", "run.json is not a run that this flashjob can send: EOF while parsing"),
        ("run.json", "{\"version\": 1}", "missing field"),
        ("run.json", "null", "run.json is not a run"),
        ("end.json", "{\"status\": \"RUNNING\"}", "end.json is not a run"),
        ("delivered.json", "[]", "delivered.json is not a run"),
    ] {
        let experiment = unique("damaged");
        let results = tempfile::tempdir().unwrap();
        leave_a_run(results.path(), &experiment, "damaged").await;
        std::fs::write(folder(results.path()).join(file), content).unwrap();
        leave_a_run(results.path(), &experiment, "sound").await;
        let published = publish(results.path(), &access(Some(server.uri())), LONG).await.unwrap();
        let failures: Vec<&str> = published
            .iter()
            .filter_map(|run| match &run.outcome {
                Outcome::Failed { reason } => Some(reason.as_str()),
                _ => None,
            })
            .collect();
        assert!(failures.len() == 1 && failures[0].contains(expected), "{file} {content}: {published:?}");
        let names: Vec<String> = server.runs(&experiment).iter().map(|run| run.name().to_owned()).collect();
        assert_eq!(names, ["sound"]);
    }
    let results = tempfile::tempdir().unwrap();
    leave_a_run(results.path(), "x", "newer").await;
    let path = folder(results.path()).join("run.json");
    let text = std::fs::read_to_string(&path).unwrap().replace("\"version\": 1", "\"version\": 2");
    std::fs::write(path, text).unwrap();
    let Outcome::Failed { reason } = publish_one(results.path(), server.uri()).await else { panic!("delivered") };
    assert!(reason.contains("it has version 2 and not 1"), "{reason}");
}

#[tokio::test]
async fn damaged_journal_lines_are_counted_and_the_rest_is_sent() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("journal");
    let results = tempfile::tempdir().unwrap();
    leave_a_run(results.path(), &experiment, "journal").await;
    let path = folder(results.path()).join("journal.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let last = r#"{"metric":"live","value":"7","step":7,"timestamp_ms":1700000000000}"#;
    std::fs::write(&path, format!("{text}nonsense\n{{\"metric\":\"live\"}}\n{last}\n")).unwrap();
    let Outcome::Delivered { notes, .. } = publish_one(results.path(), server.uri()).await else { panic!() };
    assert_eq!(notes, ["2 unreadable lines of the journal were left out"]);
    let run = server.runs(&experiment).remove(0);
    assert_eq!((run.metric("live"), run.metric("final")), (Some(7.0), Some(2.0)));
}

#[tokio::test]
async fn a_run_that_someone_deleted_is_explained() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("binned");
    let results = tempfile::tempdir().unwrap();
    let tracker = Tracker::start(&tracking(server.uri(), &experiment), &spec("binned"), results.path()).unwrap();
    while tracker.link().is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let id = json!({ "run_id": tracker.link().unwrap().run_id });
    drop(tracker);
    server.call("POST", "runs/delete", Some(id.clone()));
    let Outcome::Failed { reason } = publish_one(results.path(), server.uri()).await else { panic!("delivered") };
    assert!(reason.contains(&format!("mlflow runs restore --run-id {}", id["run_id"].as_str().unwrap())), "{reason}");
    server.call("POST", "runs/restore", Some(id));
    publish_one(results.path(), server.uri()).await;
    assert_eq!(server.runs(&experiment)[0].status(), "KILLED");
}

#[tokio::test]
async fn a_server_that_lost_its_memory_gets_the_run_anew() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("forgotten");
    let results = tempfile::tempdir().unwrap();
    let proxy = FaultProxy::before(server.uri(), |_| Fault::None).await;
    let mut tracker = Tracker::start(&tracking(&proxy.uri, &experiment), &spec("forgotten"), results.path()).unwrap();
    tracker.metric("live", 1.0, 1);
    while tracker.link().is_none() || server.runs(&experiment)[0].metric("live").is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let first = tracker.link().unwrap().run_id;
    // To this run, a server that renamed its experiment and forgets the run once is one with an empty database.
    let id = server.experiment_id(&experiment).unwrap();
    let renamed = json!({ "experiment_id": id, "new_name": unique("forgotten") });
    server.call("POST", "experiments/update", Some(renamed));
    let forgets = AtomicBool::new(true);
    proxy.set(move |seen| match seen.line.contains("log-batch") && forgets.swap(false, Ordering::Relaxed) {
        true => Fault::Answer(404, &[], r#"{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Run not found"}"#),
        false => Fault::None,
    });
    let (link, _) = delivered(tracker.finish(end(RunStatus::Finished, &[("final", 2.0)]), LONG).await);
    assert_ne!(link.run_id, first);
    let run = server.runs(&experiment).remove(0);
    assert_eq!((run.param("model"), run.metric("live"), run.metric("final")), (Some("tiny"), Some(1.0), Some(2.0)));
}

#[tokio::test]
async fn an_interrupted_ending_can_be_replaced_by_another() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("interrupted");
    let results = tempfile::tempdir().unwrap();
    let proxy = FaultProxy::before(server.uri(), |_| Fault::Hang).await;
    let mut tracker = Tracker::start(&tracking(&proxy.uri, &experiment), &spec("twice"), results.path()).unwrap();
    let patience = Duration::from_millis(300);
    let first = tokio::time::timeout(patience, tracker.finish(end(RunStatus::Finished, &[("m", 1.0)]), LONG)).await;
    assert!(first.is_err(), "the server hangs");
    proxy.set(|_| Fault::None);
    let mut killed = end(RunStatus::Killed, &[("m", 1.0)]);
    killed.tags = pairs(&[("signal", "SIGTERM")]);
    delivered(tracker.finish(killed, LONG).await);
    let run = server.runs(&experiment).remove(0);
    assert_eq!((run.status(), run.tag("signal"), run.metric("m")), ("KILLED", Some("SIGTERM"), Some(1.0)));
    // And the spool says the same.
    let text = std::fs::read_to_string(folder(results.path()).join("end.json")).unwrap();
    assert!(text.contains("KILLED"), "{text}");
}

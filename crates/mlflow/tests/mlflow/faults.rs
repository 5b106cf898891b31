//! Servers that are away, slow, confused or dying: the run goes on, and its record arrives later, exactly once.

use std::time::{Duration, Instant};

use flashjob_mlflow::{Delivery, Outcome, RunStatus, Tracker};

use super::fault_proxy::{Fault, FaultProxy};
use super::{LONG, delivered, end, publish_one, spec, spooled, tracking, unique};
use crate::support::{mlflow_server, process};

/// Flush time of runs that cannot succeed.
pub const SHORT: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn whatever_the_server_does_the_record_is_kept_and_arrives_once() {
    let Some(server) = mlflow_server::shared() else { return };
    const BAD_GATEWAY: &str = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>";
    let cases: [(Fault, &str); 9] = [
        (Fault::Answer(502, &[("content-type", "text/html")], BAD_GATEWAY), "it answered 502: 502 Bad Gateway nginx"),
        (Fault::Answer(429, &[("retry-after", "3600")], "busy"), "it answered 429: busy"),
        (Fault::Answer(403, &[], "no entry"), "it answered 403: no entry; the server, or a proxy before it"),
        (Fault::Answer(200, &[], "<html>please log in"), "is mlflow-uri the address of an MLflow server?"),
        (Fault::Answer(302, &[("location", "https://other/")], ""), "it redirects to https://other/"),
        (
            Fault::Answer(500, &[], r#"{"error_code": "FEATURE_DISABLED", "message": "off"}"#),
            "it answered 500 FEATURE_DISABLED: off",
        ),
        // The real server's own host check.
        (
            Fault::Header("host", "mlflow:5000"),
            "Invalid Host header - possible DNS rebinding attack detected; start the MLflow server with",
        ),
        (Fault::Hang, "did not take it within"),
        (Fault::Break, "it cannot be reached"),
    ];
    let all = cases.into_iter().map(|(fault, expected)| async move {
        let experiment = unique("faults");
        let results = tempfile::tempdir().unwrap();
        let rule = {
            let fault = fault.clone();
            move |_: &_| fault.clone()
        };
        let proxy = FaultProxy::before(server.uri(), rule).await;
        let mut tracker = Tracker::start(&tracking(&proxy.uri, &experiment), &spec("kept"), results.path()).unwrap();
        tracker.metric("live", 1.0, 1);
        let before = Instant::now();
        let reason = spooled(tracker.finish(end(RunStatus::Finished, &[("final", 2.0)]), SHORT).await);
        assert!(before.elapsed() < LONG, "the flush is bounded");
        assert!(reason.contains(expected), "{fault:?}: {reason}");
        if let Fault::Header(..) = fault {
            let host = proxy.uri.trim_start_matches("http://");
            assert!(reason.contains(&format!("--allowed-hosts '{host},localhost:*,127.0.0.1:*'")), "{reason}");
        }
        drop(tracker);
        let Outcome::Delivered { link, .. } = publish_one(results.path(), server.uri()).await else {
            panic!("{fault:?}: not delivered")
        };
        assert_eq!(publish_one(results.path(), server.uri()).await, Outcome::AlreadyDelivered { link });
        let runs = server.runs(&experiment);
        assert_eq!(runs.len(), 1, "{fault:?}");
        assert_eq!((runs[0].status(), runs[0].name()), ("FINISHED", "kept"));
        assert_eq!((runs[0].metric("live"), runs[0].metric("final")), (Some(1.0), Some(2.0)));
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn nobody_listens() {
    let results = tempfile::tempdir().unwrap();
    let uri = format!("http://127.0.0.1:{}", process::free_port());
    let mut tracker = Tracker::start(&tracking(&uri, "x"), &spec("x"), results.path()).unwrap();
    let reason = spooled(tracker.finish(end(RunStatus::Finished, &[]), SHORT).await);
    assert!(reason.contains(&uri) && reason.contains("Connection refused"), "{reason}");
}

#[tokio::test]
async fn a_server_that_comes_back_gets_everything() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("back");
    let results = tempfile::tempdir().unwrap();
    let proxy = FaultProxy::before(server.uri(), |_| Fault::Break).await;
    let mut tracker = Tracker::start(&tracking(&proxy.uri, &experiment), &spec("back"), results.path()).unwrap();
    tracker.metric("live", 1.0, 1);
    while proxy.seen().len() < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    proxy.set(|_| Fault::None);
    while tracker.link().is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    delivered(tracker.finish(end(RunStatus::Finished, &[]), LONG).await);
    assert_eq!(server.runs(&experiment)[0].metric("live"), Some(1.0));
}

#[tokio::test]
async fn a_slow_server_slows_nothing() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("slow");
    let results = tempfile::tempdir().unwrap();
    let proxy = FaultProxy::before(server.uri(), |_| Fault::Slow(Duration::from_millis(300))).await;
    let mut tracker = Tracker::start(&tracking(&proxy.uri, &experiment), &spec("slow"), results.path()).unwrap();
    for step in 0..30_000 {
        tracker.metric("live", 1.0, step);
    }
    // Not one of those points waited for the server, which has answered nothing yet.
    assert!(proxy.seen().len() <= 2 && tracker.link().is_none());
    // Thirty batches need not be as slow.
    proxy.set(|_| Fault::None);
    delivered(tracker.finish(end(RunStatus::Finished, &[("final", 1.0)]), LONG).await);
    let run = server.runs(&experiment).remove(0);
    let live =
        run.0["data"]["metrics"].as_array().unwrap().iter().find(|metric| metric["key"] == "live").unwrap().clone();
    assert_eq!(live["step"].as_i64(), Some(29_999), "thinned or not, the newest point is there");
}

#[tokio::test]
async fn a_creation_whose_answer_was_lost_is_found_again() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("lost");
    let results = tempfile::tempdir().unwrap();
    let rule = |seen: &super::fault_proxy::Seen| {
        if seen.line.contains("runs/create") { Fault::LoseAnswer } else { Fault::None }
    };
    let proxy = FaultProxy::before(server.uri(), rule).await;
    let mut tracker = Tracker::start(&tracking(&proxy.uri, &experiment), &spec("lost"), results.path()).unwrap();
    delivered(tracker.finish(end(RunStatus::Finished, &[]), LONG).await);
    assert_eq!((server.runs(&experiment).len(), server.deleted_runs(&experiment).len()), (1, 0));
    assert_eq!(proxy.count("runs/create"), 1);
}

#[tokio::test]
async fn a_creation_that_arrives_late_does_not_leave_two_runs() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("late");
    let results = tempfile::tempdir().unwrap();
    let proxy = FaultProxy::before(server.uri(), |_| Fault::None).await;
    let first = std::sync::atomic::AtomicBool::new(true);
    proxy.set(move |seen| {
        let create = seen.line.contains("runs/create");
        match create && first.swap(false, std::sync::atomic::Ordering::Relaxed) {
            true => Fault::Late(Duration::from_millis(1000)),
            false => Fault::None,
        }
    });
    let mut tracker = Tracker::start(&tracking(&proxy.uri, &experiment), &spec("late"), results.path()).unwrap();
    while server.runs(&experiment).len() < 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (link, _) = delivered(tracker.finish(end(RunStatus::Finished, &[("m", 1.0)]), LONG).await);
    let (runs, deleted) = (server.runs(&experiment), server.deleted_runs(&experiment));
    assert_eq!((runs.len(), deleted.len()), (1, 1));
    assert_eq!((runs[0].id(), runs[0].status(), runs[0].metric("m")), (&*link.run_id, "FINISHED", Some(1.0)));
}

/// A request whose answer was not waited for is still being served when it is repeated: the database takes one of the
/// two. The answers are those of MLflow 3.17.2 over SQLite and over PostgreSQL; the last one's database was too busy.
#[tokio::test]
async fn a_database_in_passing_trouble_is_no_refusal() {
    const ANSWERS: [&str; 3] = [
        r#"{"error_code": "BAD_REQUEST", "message": "(sqlite3.IntegrityError) UNIQUE constraint failed: params.key, params.run_uuid\n[SQL: INSERT INTO params]"}"#,
        r#"{"error_code": "BAD_REQUEST", "message": "(psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint \"param_pk\""}"#,
        r#"{"error_code": "BAD_REQUEST", "message": "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00"}"#,
    ];
    let Some(server) = mlflow_server::shared() else { return };
    for answer in ANSWERS {
        let experiment = unique("collision");
        let results = tempfile::tempdir().unwrap();
        let proxy = FaultProxy::before(server.uri(), |_| Fault::None).await;
        let first = std::sync::atomic::AtomicBool::new(true);
        proxy.set(move |seen| {
            let batch = seen.line.contains("runs/log-batch");
            match batch && first.swap(false, std::sync::atomic::Ordering::Relaxed) {
                true => Fault::Answer(400, &[("content-type", "application/json")], answer),
                false => Fault::None,
            }
        });
        let mut tracker = Tracker::start(&tracking(&proxy.uri, &experiment), &spec("both"), results.path()).unwrap();
        delivered(tracker.finish(end(RunStatus::Finished, &[("m", 1.0)]), LONG).await);
        assert_eq!(server.runs(&experiment)[0].metric("m"), Some(1.0));
        assert!(proxy.count("runs/log-batch") > 1, "the first was repeated");
    }
}

#[tokio::test]
async fn one_refused_part_does_not_hold_up_the_others() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("refused");
    let results = tempfile::tempdir().unwrap();
    let rule = |seen: &super::fault_proxy::Seen| match seen.line.contains("bad.bin") {
        true => Fault::Answer(413, &[], "<h1>Request Entity Too Large</h1>"),
        false => Fault::None,
    };
    let proxy = FaultProxy::before(server.uri(), rule).await;
    let mut tracker = Tracker::start(&tracking(&proxy.uri, &experiment), &spec("refused"), results.path()).unwrap();
    let mut end = end(RunStatus::Finished, &[("m", 1.0)]);
    for name in ["bad.bin", "good.bin"] {
        std::fs::write(results.path().join(name), name).unwrap();
        end.artifacts.push(results.path().join(name));
    }
    let reason = spooled(tracker.finish(end, LONG).await);
    assert!(reason.contains("`bad.bin`") && reason.contains("limits the size of requests"), "{reason}");
    let run = server.runs(&experiment).remove(0);
    assert_eq!((run.status(), run.metric("m")), ("FINISHED", Some(1.0)));
    assert_eq!(server.artifact(&run, "good.bin").unwrap(), b"good.bin");
    drop(tracker);
    publish_one(results.path(), server.uri()).await;
    let run = server.runs(&experiment).remove(0);
    assert_eq!(server.artifact(&run, "bad.bin").unwrap(), b"bad.bin");
}

#[tokio::test]
async fn artifacts_that_only_the_server_can_reach_are_said_not_fatal() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("elsewhere");
    let body = serde_json::json!({ "name": experiment, "artifact_location": "s3://bucket/path" });
    server.call("POST", "experiments/create", Some(body));
    let results = tempfile::tempdir().unwrap();
    let artifact = results.path().join("result.json");
    std::fs::write(&artifact, "{}").unwrap();
    let mut tracker = Tracker::start(&tracking(server.uri(), &experiment), &spec("s3"), results.path()).unwrap();
    let mut end = end(RunStatus::Finished, &[]);
    end.artifacts = vec![artifact];
    let (_, notes) = delivered(tracker.finish(end, LONG).await);
    assert!(notes.len() == 1 && notes[0].contains("s3://bucket/path"), "{notes:?}");
    assert_eq!(server.runs(&experiment)[0].status(), "FINISHED");
}

#[tokio::test]
async fn a_record_that_is_neither_sent_nor_on_disk_is_said_to_be_lost() {
    let Some(server) = mlflow_server::shared() else { return };
    for (uri, lost) in [("http://127.0.0.1:1", true), (server.uri(), false)] {
        let results = tempfile::tempdir().unwrap();
        let spec = spec("lost");
        let mut tracker = Tracker::start(&tracking(uri, &unique("lost")), &spec, results.path()).unwrap();
        // The end cannot be written: its draft is a folder.
        std::fs::create_dir(results.path().join("mlflow").join(spec.key.as_str()).join("end.json.part")).unwrap();
        match tracker.finish(end(RunStatus::Finished, &[]), if lost { SHORT } else { LONG }).await {
            Delivery::Lost { reason } if lost => {
                assert!(
                    reason.contains("refused") && reason.contains("cannot write") && reason.contains("end.json"),
                    "{reason}"
                );
            }
            Delivery::Delivered { .. } if !lost => {}
            other => panic!("{other:?}"),
        }
    }
}

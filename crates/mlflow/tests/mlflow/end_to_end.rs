//! Tests that take a server of their own or hundreds of requests: `scripts/test` runs them, the loop of `scripts/dev` does not.

use std::path::Path;

use flashjob_config::{Credentials, Secret};
use flashjob_mlflow::{Delivery, Outcome, RunStatus, Tracker, publish};

use super::connection::basic;
use super::fault_proxy::{Fault, FaultProxy, Seen};
use super::faults::SHORT;
use super::{LONG, access, delivered, end, publish_one, spec, spooled, tracking, unique};
use crate::support::mlflow_server;

/// Fails if a file below `directory` holds `secret`.
fn assert_nowhere(directory: &Path, secret: &str) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            assert_nowhere(&path, secret);
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            assert!(!text.contains(secret), "{} holds a secret", path.display());
        }
    }
}

#[tokio::test]
async fn a_server_with_a_login_takes_the_right_password_only() {
    let Some(server) = mlflow_server::with_login() else { return };
    let experiment = unique("login");
    let (name, password) = mlflow_server::ADMIN;
    for (credentials, expected) in [
        (Credentials::Anonymous, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"),
        (basic(name, "wr0ng-s3cret"), "the MLflow user name, password or token is not accepted"),
        (Credentials::Bearer(Secret::new("wr0ng-s3cret")), "the MLflow user name, password or token is not accepted"),
    ] {
        let results = tempfile::tempdir().unwrap();
        let mut tracking = tracking(server.uri(), &experiment);
        tracking.credentials = credentials;
        let mut tracker = Tracker::start(&tracking, &spec("login"), results.path()).unwrap();
        let reason = spooled(tracker.finish(end(RunStatus::Finished, &[]), LONG).await);
        assert!(reason.contains("it answered 401") && reason.contains(expected), "{reason}");
        assert!(!reason.contains("wr0ng-s3cret"), "{reason}");
        assert_nowhere(results.path(), "wr0ng-s3cret");
        assert_eq!(server.experiment_id(&experiment), None);
    }
    let results = tempfile::tempdir().unwrap();
    let artifact = results.path().join("result.json");
    std::fs::write(&artifact, "{}").unwrap();
    let mut tracking = tracking(server.uri(), &experiment);
    tracking.credentials = basic(name, password);
    let mut tracker = Tracker::start(&tracking, &spec("login"), results.path()).unwrap();
    tracker.metric("live", 1.0, 1);
    let mut end = end(RunStatus::Finished, &[("final", 2.0)]);
    end.artifacts = vec![artifact];
    delivered(tracker.finish(end, LONG).await);
    drop(tracker);
    let run = server.runs(&experiment).remove(0);
    assert_eq!((run.status(), run.metric("live"), run.metric("final")), ("FINISHED", Some(1.0), Some(2.0)));
    assert_eq!(server.artifact(&run, "result.json").unwrap(), b"{}");
    assert_nowhere(results.path(), password);
}

#[tokio::test]
async fn publishing_logs_in_with_what_the_publisher_has() {
    let Some(server) = mlflow_server::with_login() else { return };
    let experiment = unique("publish with login");
    let results = tempfile::tempdir().unwrap();
    let mut tracker = Tracker::start(&tracking(server.uri(), &experiment), &spec("later"), results.path()).unwrap();
    spooled(tracker.finish(end(RunStatus::Finished, &[]), LONG).await);
    drop(tracker);
    let mut access = access(None);
    let published = publish(results.path(), &access, LONG).await.unwrap();
    assert!(matches!(&published[0].outcome, Outcome::Failed { reason } if reason.contains("401")), "{published:?}");
    let (name, password) = mlflow_server::ADMIN;
    access.credentials = basic(name, password);
    let published = publish(results.path(), &access, LONG).await.unwrap();
    assert!(matches!(&published[0].outcome, Outcome::Delivered { .. }), "{published:?}");
    assert_eq!(server.runs(&experiment).len(), 1);
}

/// The server dies before its request number `n`, for every `n` there is; another process publishes later.
#[tokio::test]
async fn a_server_that_dies_halfway_leaves_no_half_and_no_double() {
    let Some(server) = mlflow_server::shared() else { return };
    let run = |death: usize, lost: Fault| async move {
        let experiment = unique("dying");
        let results = tempfile::tempdir().unwrap();
        let rule = move |seen: &Seen| match seen.number.cmp(&death) {
            std::cmp::Ordering::Less => Fault::None,
            std::cmp::Ordering::Equal => lost.clone(),
            std::cmp::Ordering::Greater => Fault::Break,
        };
        let proxy = FaultProxy::before(server.uri(), rule).await;
        let mut tracker = Tracker::start(&tracking(&proxy.uri, &experiment), &spec("dying"), results.path()).unwrap();
        for step in 0..5 {
            tracker.metric("live", f64::from(step as u32), step);
        }
        let artifact = results.path().join("result.json");
        std::fs::write(&artifact, "first").unwrap();
        let mut end = end(RunStatus::Finished, &[("live", 9.0), ("final", 2.5)]);
        end.artifacts = vec![artifact.clone()];
        let delivery = tracker.finish(end, SHORT).await;
        let requests = proxy.seen().len();
        drop(tracker);
        // The next job in the same directory writes its own.
        std::fs::write(&artifact, "second").unwrap();
        match delivery {
            Delivery::Delivered { .. } => assert!(requests <= death, "delivered although it died"),
            Delivery::Spooled { .. } => {
                let outcome = publish_one(results.path(), server.uri()).await;
                assert!(matches!(outcome, Outcome::Delivered { .. }), "{death}: {outcome:?}");
            }
            Delivery::Lost { reason } => panic!("{reason}"),
        }
        let runs = server.runs(&experiment);
        assert_eq!(runs.len(), 1, "death before request {death}");
        let run = &runs[0];
        assert_eq!((run.status(), run.param("model"), run.tag("host")), ("FINISHED", Some("tiny"), Some("here")));
        let live: Vec<f64> = server.history(run, "live").into_iter().map(|(_, _, value)| value).collect();
        assert_eq!(live, [0.0, 1.0, 2.0, 3.0, 4.0, 9.0], "death before request {death}");
        assert_eq!((run.metric("final"), run.metric("live")), (Some(2.5), Some(9.0)));
        assert_eq!(server.history(run, "final").len(), 1);
        assert_eq!(server.artifact(run, "result.json").unwrap(), b"first");
        requests
    };
    let healthy = run(usize::MAX, Fault::Break).await;
    assert!(healthy >= 9, "only {healthy} requests: has the protocol changed?");
    let deaths = (0..healthy).flat_map(|death| [run(death, Fault::Break), run(death, Fault::LoseAnswer)]);
    futures_util::future::join_all(deaths).await;
}

//! Experiments that are missing, being made by others, or deleted.

use std::time::Duration;

use flashjob_mlflow::{RunStatus, Tracker, check};
use serde_json::json;

use super::{LONG, delivered, end, publish_one, spec, spooled, tracking, unique};
use crate::support::mlflow_server;

#[tokio::test]
async fn eight_jobs_make_the_same_experiment_at_the_same_time() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("raced");
    let jobs = (0..8).map(|number| {
        let tracking = tracking(server.uri(), &experiment);
        async move {
            let results = tempfile::tempdir().unwrap();
            let mut tracker = Tracker::start(&tracking, &spec(&format!("job {number}")), results.path()).unwrap();
            delivered(tracker.finish(end(RunStatus::Finished, &[("m", 1.0)]), LONG).await).0
        }
    });
    let links = futures_util::future::join_all(jobs).await;
    let mut names: Vec<String> = server.runs(&experiment).iter().map(|run| run.name().to_owned()).collect();
    names.sort();
    assert_eq!(names, (0..8).map(|number| format!("job {number}")).collect::<Vec<_>>());
    assert!(links.iter().all(|link| link.experiment_id == links[0].experiment_id), "{links:?}");
}

#[tokio::test]
async fn a_deleted_experiment_is_explained_and_can_be_restored() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("deleted");
    let tracking = tracking(server.uri(), &experiment);
    let created = server.call("POST", "experiments/create", Some(json!({ "name": experiment })));
    check(&tracking, LONG).await.unwrap();
    server.call("POST", "experiments/delete", Some(created.clone()));

    let advice = format!(
        "restore it with `mlflow experiments restore --experiment-id {}`",
        created["experiment_id"].as_str().unwrap()
    );
    let error = check(&tracking, LONG).await.unwrap_err().to_string();
    assert!(error.contains(&advice) && error.contains("another experiment-name"), "{error}");
    let results = tempfile::tempdir().unwrap();
    let mut tracker = Tracker::start(&tracking, &spec("late"), results.path()).unwrap();
    let reason = spooled(tracker.finish(end(RunStatus::Finished, &[("m", 1.0)]), LONG).await);
    assert_eq!(reason, error);
    drop(tracker);

    server.call("POST", "experiments/restore", Some(created));
    let outcome = publish_one(results.path(), server.uri()).await;
    assert_eq!(server.runs(&experiment)[0].status(), "FINISHED", "{outcome:?}");
}

#[tokio::test]
async fn checking_changes_nothing() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("checked");
    check(&tracking(server.uri(), &experiment), Duration::from_secs(30)).await.unwrap();
    assert_eq!(server.experiment_id(&experiment), None);
}

//! Runs read back from a server: by experiment, by name and by id, with their files.

use flashjob_mlflow::{Error, RunEnd, RunStatus, StoredRuns, Tracker};

use super::{LONG, delivered, end, spec, tracking, unique};
use crate::support::mlflow_server;

/// Records a run called `name` with a `result.json` that says so; gives its id.
async fn recorded(uri: &str, experiment: &str, name: &str, status: RunStatus, file: Option<&str>) -> String {
    let results = tempfile::tempdir().unwrap();
    let artifacts = file.map(|text| {
        let path = results.path().join("result.json");
        std::fs::write(&path, text).unwrap();
        path
    });
    let mut tracker = Tracker::start(&tracking(uri, experiment), &spec(name), results.path()).unwrap();
    let end = RunEnd { artifacts: artifacts.into_iter().collect(), ..end(status, &[("m", 1.0)]) };
    delivered(tracker.finish(end, LONG).await).0.run_id
}

async fn found(runs: &StoredRuns, path: &str) -> Result<Vec<String>, Error> {
    Ok(runs.find(path, 3).await?.iter().map(|run| run.id().to_owned()).collect())
}

#[tokio::test]
async fn runs_are_found_by_experiment_name_and_id() {
    let Some(server) = mlflow_server::shared() else { return };
    // An experiment whose name has a slash, too.
    let experiment = unique("stored/runs");
    let record = async |name: &str, status, file| recorded(server.uri(), &experiment, name, status, file).await;
    let first = record("it's \"first\"", RunStatus::Finished, Some("{}")).await;
    let second = record("second", RunStatus::Finished, None).await;
    let failed = record("failed", RunStatus::Failed, Some("[1]")).await;
    let runs = StoredRuns::open(&tracking(server.uri(), "elsewhere"), LONG).unwrap();
    assert_eq!(found(&runs, &experiment).await.unwrap(), [first.clone(), second.clone()], "those that have finished");
    assert_eq!(found(&runs, &format!("{experiment}/second")).await.unwrap(), std::slice::from_ref(&second));
    assert_eq!(
        found(&runs, &format!("{experiment}/failed")).await.unwrap(),
        std::slice::from_ref(&failed),
        "named, it is meant"
    );
    assert_eq!(found(&runs, &format!("{experiment}/{first}")).await.unwrap(), std::slice::from_ref(&first));

    let by_id = runs.find(&format!("{experiment}/{failed}"), 3).await.unwrap().remove(0);
    assert_eq!((by_id.name(), by_id.experiment.as_str()), ("failed", experiment.as_str()));
    assert_eq!(runs.read(&by_id, "result.json", 100).await.unwrap().as_deref(), Some(&b"[1]"[..]));
    assert_eq!(runs.read(&by_id, "other.json", 100).await.unwrap(), None);
    let too_long = runs.read(&by_id, "result.json", 2).await.unwrap_err().to_string();
    assert!(too_long.contains("its answer is longer than 2 bytes"), "{too_long}");
}

#[tokio::test]
async fn what_is_not_there_and_what_has_two_meanings_is_told_in_words() {
    let Some(server) = mlflow_server::shared() else { return };
    let experiment = unique("missing");
    for name in ["twin", "twin", "third", "fourth"] {
        recorded(server.uri(), &experiment, name, RunStatus::Finished, None).await;
    }
    let runs = StoredRuns::open(&tracking(server.uri(), &experiment), LONG).unwrap();
    let uri = server.uri();
    for (path, sentence) in [
        (
            "no such/experiment".to_owned(),
            format!("MLflow {uri} has no experiment `no such/experiment`; name one that it has, or EXPERIMENT/RUN"),
        ),
        (
            format!("{experiment}/none"),
            format!(
                "the experiment `{experiment}` of MLflow {uri} has no run `none`; give the name or the id of one that it has"
            ),
        ),
        (
            format!("{experiment}/'\""),
            format!(
                "the experiment `{experiment}` of MLflow {uri} has no run `'\"`; give the name or the id of one that it has"
            ),
        ),
        (
            format!("{experiment}/twin"),
            format!(
                "the experiment `{experiment}` of MLflow {uri} has 2 runs called `twin`; give the id of one of them"
            ),
        ),
        (
            experiment.clone(),
            format!(
                "the experiment `{experiment}` of MLflow {uri} has 4 finished runs, more than 3; name runs as EXPERIMENT/RUN"
            ),
        ),
    ] {
        assert_eq!(found(&runs, &path).await.unwrap_err().to_string(), sentence);
    }
}

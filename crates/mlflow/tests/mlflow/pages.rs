//! The real pages of MLflow in a browser: where a run's link leads, and what is there.

use flashjob_mlflow::{RunEnd, RunStatus, Tracker};
use serde_json::json;

use super::{LONG, delivered, end, pairs, spec, tracking, unique};
use crate::support::browser::{look, screenshots};
use crate::support::mlflow_server::{self, MlflowServer};

const KIND: &str = "mlflow.experimentKind";

/// The tag of the experiment called `name` that says what kind it is.
fn kind(server: &MlflowServer, name: &str) -> Option<String> {
    let id = server.experiment_id(name).unwrap();
    let answer = server.call("GET", &format!("experiments/get?experiment_id={id}"), None);
    let tags = answer["experiment"]["tags"].as_array().into_iter().flatten();
    tags.filter(|tag| tag["key"] == KIND).find_map(|tag| tag["value"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn only_an_experiment_that_is_made_here_gets_a_kind() {
    let Some(server) = mlflow_server::shared() else { return };
    let (ours, theirs) = (unique("ours"), unique("theirs"));
    server.call("POST", "experiments/create", Some(json!({ "name": theirs })));
    for experiment in [&ours, &theirs] {
        let results = tempfile::tempdir().unwrap();
        let mut tracker = Tracker::start(&tracking(server.uri(), experiment), &spec("run"), results.path()).unwrap();
        delivered(tracker.finish(end(RunStatus::Finished, &[]), LONG).await);
    }
    assert_eq!(kind(server, &ours).as_deref(), Some("custom_model_development"));
    assert_eq!(kind(server, &theirs), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_opens_the_run_in_the_view_with_charts() {
    let Some(server) = mlflow_server::shared() else { return };
    let results = tempfile::tempdir().unwrap();
    let mut tracker =
        Tracker::start(&tracking(server.uri(), &unique("shown")), &spec("a run"), results.path()).unwrap();
    for step in 0..20 {
        tracker.metric("live/output_tokens_per_second", 100.0 + step as f64, step);
    }
    let description = "| figure | value | unit |\n|:--|--:|:--|\n| output tokens per second | 305.2 | tokens/s |\n";
    let end =
        RunEnd { tags: pairs(&[("mlflow.note.content", description)]), ..end(RunStatus::Finished, &[("m", 1.0)]) };
    let (link, _) = delivered(tracker.finish(end, LONG).await);
    let seen = tokio::task::spawn_blocking(move || {
        look(json!({
            "url": link.run_url, "wait_for": "text=305.2", "full_page": false,
            "shots": [{"path": screenshots().join("mlflow-run.png")}],
            "then": {"click": "text=Model metrics", "wait_for": "text=live/output_tokens_per_second",
                "path": screenshots().join("mlflow-charts.png")},
        }))
    });
    let Some(seen) = seen.await.unwrap() else { return };
    let text = seen["text"].as_str().unwrap();
    assert!(text.contains("output tokens per second") && text.contains("305.2"), "{text}");
    // The parts of the page for generative AI.
    assert!(!text.contains("Evaluation runs") && text.contains("Model metrics"), "{text}");
}

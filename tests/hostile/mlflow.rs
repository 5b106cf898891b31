//! Tracking servers that lead uploads astray, or find runs of others.

use serde_json::json;
use tempfile::TempDir;

use super::mlflow_stub::{MlflowStub, answer, run};
use super::{expect_said, short_job};

const ARTIFACTS: &str = "/api/2.0/mlflow-artifacts/artifacts/";

/// No file and no login goes to other places of the host.
#[test]
fn a_path_of_artifacts_that_leads_elsewhere_gets_nothing() {
    for (artifact_uri, goes_to) in [
        ("mlflow-artifacts:/1/own/artifacts", Some("1/own/artifacts/")),
        ("mlflow-artifacts:///1/a%20b", Some("1/a%2520b/")),
        ("mlflow-artifacts:/", Some("")),
        ("mlflow-artifacts:/1/../../../../../admin", None),
        ("mlflow-artifacts:/../../../../admin", None),
        ("mlflow-artifacts:/1/%2e%2e/%2e%2e/admin", None),
        ("mlflow-artifacts:/1/..%2f..%2fadmin", None),
        ("mlflow-artifacts:/1/%252e%252e/admin", None),
        ("mlflow-artifacts:/1/./admin", None),
        ("mlflow-artifacts:/1/.\t./admin", None),
        ("mlflow-artifacts:/1/..\\admin", None),
        ("mlflow-artifacts:////admin", None),
    ] {
        let folder = TempDir::new().unwrap();
        let server = MlflowStub::start(Vec::new(), artifact_uri, |_| None);
        let finished = short_job(&folder).args(["--mlflow-uri", &server.uri("me:s3cr3t@")]).run().expect_code(4);
        let uploads: Vec<String> =
            server.asked().into_iter().filter(|(method, ..)| method == "PUT").map(|(_, path, ..)| path).collect();
        match goes_to {
            Some(folder) => {
                let expected = format!("{ARTIFACTS}{folder}result.json");
                assert!(uploads.contains(&expected), "{artifact_uri}: {uploads:?}\n{finished}");
            }
            None => {
                assert!(uploads.is_empty(), "{artifact_uri}: {uploads:?}");
                expect_said(&finished, "to which neither files nor login are sent");
                expect_said(&finished, "`flashjob publish");
            }
        }
        for (_, path, ..) in server.asked() {
            assert!(path.starts_with("/api/2.0/mlflow"), "{artifact_uri}: {path}");
        }
    }
}

/// Runs that were not asked for are neither adopted nor written to, ended or deleted.
#[test]
fn runs_of_others_are_left_alone() {
    let theirs = vec![
        run("a-plain", "1", &[]),
        run("a-key", "1", &[("flashjob.run_key", "20260101T000000Z-0123456789abcdef")]),
        run(
            "a-replica",
            "1",
            &[("flashjob.job_uid", "another-job"), ("flashjob.replica", "0"), ("flashjob.run_key", "other")],
        ),
        run("z-parent", "1", &[("flashjob.job_uid", "another-job"), ("flashjob.run_key", "job-another-job")]),
        run(
            "z-elsewhere",
            "2",
            &[("flashjob.job_uid", "this-job"), ("flashjob.replica", "0"), ("flashjob.run_key", "job-this-job")],
        ),
    ];
    for replicas in ["1", "2"] {
        let folder = TempDir::new().unwrap();
        let server = MlflowStub::start(theirs.clone(), "mlflow-artifacts:/1/own", |_| None);
        let finished = short_job(&folder)
            .args(["--mlflow-uri", &server.uri(""), "--replica-count", replicas])
            .env("JOB_COMPLETION_INDEX", "0")
            .env("JOB_UID", "this-job")
            .run()
            .expect_code(4);
        expect_said(&finished, "MLflow finds runs that it was not asked for");
        for (_, path, body, _) in server.asked() {
            let id = &body["run_id"];
            assert!(theirs.iter().all(|run| run["info"]["run_id"] != *id), "{path} {body}");
        }
        let created = server.runs().len() - theirs.len();
        assert_eq!(created, replicas.parse::<usize>().unwrap(), "its own, and a parent where there are several");
    }
}

#[test]
fn an_experiment_of_another_name_and_pages_without_an_end_are_no_answers() {
    for (path, said, reason) in [
        (
            "experiments/get-by-name",
            json!({"experiment": {"experiment_id": "1", "name": "theirs", "lifecycle_stage": "active"}}),
            "an experiment of another name",
        ),
        ("runs/search", json!({"runs": [], "next_page_token": "again"}), "its answer goes on after 100 pages"),
    ] {
        let folder = TempDir::new().unwrap();
        let server = MlflowStub::start(Vec::new(), "", move |(_, asked, ..)| {
            asked.ends_with(path).then(|| answer(200, &[], said.to_string()))
        });
        let finished = short_job(&folder).args(["--mlflow-uri", &server.uri("")]).run().expect_code(4);
        expect_said(&finished, reason);
        assert!(server.runs().is_empty());
    }
}

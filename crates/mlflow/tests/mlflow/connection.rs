//! Logging in, headers, certificates; and that secrets stay where they are.

use std::path::Path;

use flashjob_config::{Credentials, Secret};
use flashjob_mlflow::{Client, RunStatus, Tracker, check};

use super::fault_proxy::{Fault, FaultProxy};
use super::{LONG, delivered, end, spec, tracking, unique};
use crate::support::mlflow_server;
use crate::support::process::{Process, free_port};

pub fn basic(username: &str, password: &str) -> Credentials {
    Credentials::Basic { username: username.to_owned(), password: Secret::new(password) }
}

#[tokio::test]
async fn every_request_carries_what_it_must_and_nothing_else() {
    let Some(server) = mlflow_server::shared() else { return };
    let results = tempfile::tempdir().unwrap();
    let artifact = results.path().join("result.json");
    std::fs::write(&artifact, "{}").unwrap();
    // This server has no workspaces and refuses to hear of one.
    let proxy = FaultProxy::before(server.uri(), |_| Fault::Header("x-mlflow-workspace", "")).await;
    let mut tracking = tracking(&format!("{}/", proxy.uri), &unique("headers"));
    tracking.credentials = Credentials::Bearer(Secret::new("t0ken"));
    tracking.workspace = Some("team a".to_owned());
    let mut tracker = Tracker::start(&tracking, &spec("headers"), results.path()).unwrap();
    let mut end = end(RunStatus::Finished, &[("m", 1.0)]);
    end.artifacts = vec![artifact];
    delivered(tracker.finish(end, LONG).await);
    let seen = proxy.seen();
    assert!(seen.iter().any(|seen| seen.line.starts_with("PUT /api/2.0/mlflow-artifacts/artifacts/")), "{seen:?}");
    for request in seen {
        let header = |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("authorization"), Some("Bearer t0ken"), "{}", request.line);
        assert_eq!(header("x-mlflow-workspace"), Some("team a"), "{}", request.line);
        assert!(header("user-agent").unwrap().starts_with("flashjob/"), "{}", request.line);
        assert_eq!((header("origin"), header("content-encoding")), (None, None), "{}", request.line);
        assert!(header("transfer-encoding").is_none() && !request.line.contains("//"), "{}", request.line);
    }
}

#[tokio::test]
async fn a_server_that_echoes_the_credentials_does_not_make_us_print_them() {
    let proxy = FaultProxy::before("http://127.0.0.1:1", |_| Fault::Answer(400, &[], "bad token s3cret!")).await;
    for credentials in [Credentials::Bearer(Secret::new("s3cret")), basic("me", "s3cret")] {
        let mut tracking = tracking(&proxy.uri, "x");
        tracking.credentials = credentials;
        let error = check(&tracking, LONG).await.unwrap_err();
        assert!(error.to_string().contains("bad token <redacted>!"), "{error}");
        assert!(!format!("{error:?} {tracking:?} {:?}", Client::open(&tracking)).contains("s3cret"));
    }
}

#[test]
fn settings_that_cannot_work_are_named_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let (missing, empty, junk) =
        (directory.path().join("missing.pem"), directory.path().join("empty.pem"), directory.path().join("junk.pem"));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&junk, "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n").unwrap();
    for (path, expected) in [
        (missing, "missing.pem: No such file"),
        (empty, "empty.pem: it holds no PEM certificate"),
        (junk, "junk.pem: invalid peer certificate"),
        (directory.path().to_owned(), "Is a directory"),
    ] {
        let mut tracking = tracking("https://mlflow", "x");
        tracking.server_cert_path = Some(path);
        let error = Client::open(&tracking).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("https://mlflow"), "{error}");
    }
    let mut with_token = tracking("http://mlflow", "x");
    with_token.credentials = Credentials::Bearer(Secret::new("s3cret\n"));
    let error = Client::open(&with_token).unwrap_err().to_string();
    assert!(error.contains("MLFLOW_TRACKING_TOKEN") && !error.contains("s3cret"), "{error}");
    let mut with_workspace = tracking("http://mlflow", "x");
    with_workspace.workspace = Some("a\nb".to_owned());
    let error = Client::open(&with_workspace).unwrap_err().to_string();
    assert!(error.contains("MLFLOW_WORKSPACE"), "{error}");
}

#[tokio::test]
async fn certificates_are_checked_unless_told_otherwise() {
    let Some(environment) = mlflow_server::environment() else { return };
    let directory = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mlflow/tls_server.py");
    let port = free_port();
    let mut server = Process::new(environment.join("bin/python"))
        .args([script.as_os_str(), port.to_string().as_ref(), directory.path().as_os_str()])
        .start();
    server.wait_for_stderr("serving");
    let with = |insecure: bool, certificate: Option<&str>| {
        let mut tracking = tracking(&format!("https://localhost:{port}"), "x");
        tracking.insecure_tls = insecure;
        tracking.server_cert_path = certificate.map(|name| directory.path().join(name));
        async move { check(&tracking, std::time::Duration::from_secs(2)).await.map_err(|error| error.to_string()) }
    };
    assert_eq!(with(false, Some("own.pem")).await, Ok(()));
    assert_eq!(with(true, None).await, Ok(()));
    for refused in [with(false, None).await, with(false, Some("other.pem")).await] {
        let error = refused.unwrap_err();
        assert!(error.contains("certificate") && error.contains("MLFLOW_TRACKING_SERVER_CERT_PATH"), "{error}");
    }
}

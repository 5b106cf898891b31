//! A run's record, against a real MLflow: what arrives, and what happens when it cannot.

mod connection;
mod end_to_end;
mod experiments;
mod fault_proxy;
mod faults;
mod pages;
mod publishing;
mod recording;
mod stored_runs;

use std::path::Path;
use std::time::{Duration, SystemTime};

use flashjob_config::{Credentials, Tracking};
use flashjob_mlflow::{Access, Delivery, Outcome, Published, RunEnd, RunKey, RunLink, RunSpec, RunStatus, publish};

/// Enough for a loaded machine; nothing waits that long.
const LONG: Duration = Duration::from_secs(180);

fn tracking(uri: &str, experiment: &str) -> Tracking {
    Tracking {
        uri: uri.parse().unwrap(),
        experiment: experiment.to_owned(),
        run_name: None,
        credentials: Credentials::Anonymous,
        insecure_tls: false,
        server_cert_path: None,
        workspace: None,
    }
}

/// A name that no other test, and no earlier run of this one, uses.
fn unique(name: &str) -> String {
    format!("{name} {:08x}", rand::random::<u32>())
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn spec(run_name: &str) -> RunSpec {
    let start = SystemTime::now();
    RunSpec {
        key: RunKey::random(start),
        run_name: run_name.to_owned(),
        params: pairs(&[("model", "tiny"), ("dtype", "float32")]),
        tags: pairs(&[("host", "here")]),
        start,
        member: None,
        parent: None,
    }
}

fn end(status: RunStatus, metrics: &[(&str, f64)]) -> RunEnd {
    RunEnd {
        status,
        at: SystemTime::now(),
        metrics: metrics.iter().map(|(name, value)| (name.to_string(), *value)).collect(),
        tags: Vec::new(),
        artifacts: Vec::new(),
    }
}

#[track_caller]
fn delivered(delivery: Delivery) -> (RunLink, Vec<String>) {
    match delivery {
        Delivery::Delivered { link, notes } => (link, notes),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn spooled(delivery: Delivery) -> String {
    match delivery {
        Delivery::Spooled { reason } => reason,
        other => panic!("{other:?}"),
    }
}

/// Access to the server at `uri`, or at the address in the spool.
fn access(uri: Option<&str>) -> Access {
    Access {
        uri: uri.map(|uri| uri.parse().unwrap()),
        only_at: None,
        experiment: None,
        workspace: None,
        credentials: Credentials::Anonymous,
        insecure_tls: false,
        server_cert_path: None,
    }
}

/// Publishes the one run in `results_dir` to the server at `uri`.
async fn publish_one(results_dir: &Path, uri: &str) -> Outcome {
    let mut published = publish(results_dir, &access(Some(uri)), LONG).await.unwrap();
    assert_eq!(published.len(), 1, "{published:?}");
    let Published { outcome, .. } = published.remove(0);
    outcome
}

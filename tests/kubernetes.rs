//! Manifests against Kubernetes' own schemas, and against the rules that the schemas miss.

mod dashboard;
mod overlays;
mod play;
mod semantics;
mod vllm_names;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::manifests::yaml;
use crate::support::process::skip;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s")
}

/// The kubectl that renders overlays; `None` where it cannot be had (and the test says so).
fn kubectl() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kubectl");
    let found = Command::new(script).output().unwrap();
    if !found.status.success() {
        skip(&format!("scripts/kubectl: {}", String::from_utf8_lossy(&found.stderr)));
        return None;
    }
    Some(PathBuf::from(String::from_utf8_lossy(&found.stdout).trim()))
}

/// What `kubectl kustomize` makes of a folder below `k8s`.
fn kustomized(kubectl: &Path, name: &str) -> String {
    let output = Command::new(kubectl).arg("kustomize").arg(folder().join(name)).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The document of one kind.
fn of_kind(documents: &[Value], kind: &str) -> Value {
    let mut found = documents.iter().filter(|document| document["kind"] == kind);
    let document = found.next().unwrap_or_else(|| panic!("no {kind}")).clone();
    assert!(found.next().is_none(), "one {kind}");
    document
}

/// The base's Job.
fn job(judges: &Path) -> Value {
    let text = std::fs::read_to_string(folder().join("base/job.yaml")).unwrap();
    of_kind(&yaml(judges, &text), "Job")
}

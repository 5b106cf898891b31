//! Judges of manifests, and a reader of YAML: real ones, in Python.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::process::Process;
use super::venv::venv;

/// The Python environment that judges manifests; `None` where it cannot be made (and the test says so).
pub fn judges() -> Option<PathBuf> {
    venv("kubernetes")
}

/// YAML documents as JSON, by a real YAML reader.
pub fn yaml(judges: &Path, text: &str) -> Vec<Value> {
    let program =
        "import json, sys, yaml\nprint(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d is not None]))";
    let finished = Process::new(judges.join("bin/python")).args(["-c", program]).input(text).run().expect_code(0);
    serde_json::from_str(&finished.stdout).unwrap()
}

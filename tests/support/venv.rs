//! Python environments with pinned packages, made by `scripts/venv`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::skip;

/// The environment of `scripts/requirements/NAME.txt`, made where it is not there; `None` where it cannot be made (and the test
/// says so).
pub fn venv(name: &str) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/venv");
    let environment = Command::new(script).arg(name).output().unwrap();
    if !environment.status.success() {
        skip(&format!("scripts/venv {name} failed: {}", String::from_utf8_lossy(&environment.stderr)));
        return None;
    }
    Some(PathBuf::from(String::from_utf8_lossy(&environment.stdout).trim()))
}

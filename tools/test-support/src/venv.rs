//! Python environments with pinned packages, made by `scripts/venv`.

use std::path::PathBuf;
use std::time::Duration;

use super::process::{Process, skip};
use super::project;

/// Installing from PyPI, if it was not done before.
const INSTALLATION: Duration = Duration::from_secs(900);

/// The environment of `scripts/requirements/NAME.txt`, made where it is not there; `None` where it cannot be made (and the test
/// says so).
pub fn venv(name: &str) -> Option<PathBuf> {
    let script = project().join("scripts/venv");
    let mut venv = Process::new(script).args([name]).timeout(INSTALLATION);
    // Python and pip find their settings, proxies and caches there.
    for (key, value) in std::env::vars_os() {
        venv = venv.env(key, value);
    }
    let finished = venv.run();
    if finished.code() != Some(0) {
        skip(&format!("scripts/venv {name} failed: {finished}"));
        return None;
    }
    Some(PathBuf::from(finished.stdout.trim()))
}

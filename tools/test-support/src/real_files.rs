//! Files of real models, fetched by `scripts/real-files`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use super::process::{Process, skip};
use super::project;

/// Fetching a few hundred megabytes, if it was not done before.
const DOWNLOAD: Duration = Duration::from_secs(900);

/// The folder that holds them; `None` where they cannot be fetched (and the test says so).
pub fn real_files() -> Option<&'static Path> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let script = project().join("scripts/real-files");
        let mut fetch = Process::new(script).timeout(DOWNLOAD);
        // Python, pip and npm find their settings, proxies and caches there.
        for (key, value) in std::env::vars_os() {
            fetch = fetch.env(key, value);
        }
        let finished = fetch.run();
        match finished.code() {
            Some(0) => Ok(PathBuf::from(finished.stdout.trim())),
            _ => Err(format!("scripts/real-files failed: {finished}")),
        }
    });
    match folder {
        Ok(folder) => Some(folder),
        Err(reason) => {
            skip(reason);
            None
        }
    }
}

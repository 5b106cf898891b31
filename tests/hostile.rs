//! Hostile and broken inputs, as tables: an input, an exit code, a message.

mod child_environment;
mod control_characters;
mod copying;
mod dataset;
mod memory;
mod metrics_port;
mod mlflow;
mod mlflow_answers;
mod mlflow_stub;
mod model_files;
mod results_dir;
mod secrets;
mod store;
mod stranger;
mod termination_message;
mod umask;
mod versions;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::job::job_without_model;
use crate::support::process::{Finished, Process};

/// A job that ends as soon as it looks for its model, with exit code 4. Its results go to `out` in `folder`.
fn short_job(folder: &TempDir) -> Process {
    job_without_model(folder).args(["--model=/nonexistent/model"])
}

/// Everything below `folder` but for access times: kind, owner, and content or where a link leads.
fn everything_in(folder: &Path) -> BTreeMap<PathBuf, (u32, u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let there = path.symlink_metadata().unwrap();
            let content = if there.is_symlink() {
                path.read_link().unwrap().into_os_string().into_encoded_bytes()
            } else if there.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            if there.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, (there.mode(), there.uid(), content));
        }
    }
    found
}

/// Fails the test, with all that was said, unless standard error holds `text`.
#[track_caller]
fn expect_said(finished: &Finished, text: &str) {
    assert!(finished.stderr.contains(text), "no {text:?} in {finished}");
}

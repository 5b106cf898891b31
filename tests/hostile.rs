//! Hostile and broken inputs, as tables: an input, an exit code, a message.

mod child_environment;
mod control_characters;
mod copying;
mod dataset;
mod ends;
mod memory;
mod metrics_port;
mod mlflow;
mod mlflow_answers;
mod mlflow_stub;
mod model_files;
mod privileges;
mod results_dir;
mod secrets;
mod store;
mod stranger;
mod templates;
mod termination_message;
mod tokenizers;
mod umask;
mod versions;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

use crate::job::{job_without_model, result, tiny_model};
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

/// Jobs that run side by side: each of them computes on all processors for a moment.
const AT_A_TIME: usize = 3;

/// The tiny model in `folder`, as it is.
fn copy_of_tiny_model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(tiny_model()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    model
}

/// Runs a job on a text, a conversation and a text, and gives its end and its result.
fn answered(results: &TempDir, model: &Path, more: &[&str]) -> (Finished, Value) {
    let dataset = results.path().join("dataset");
    let lines = [
        r#"{"prompt": "one aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"}"#,
        r#"{"messages": [{"role": "user", "content": "two"}]}"#,
        r#"{"prompt": "three"}"#,
    ];
    std::fs::write(&dataset, lines.join("\n")).unwrap();
    let finished = job_without_model(results)
        .args(["--model".into(), model.as_os_str().to_owned()])
        .args(["--dataset=jsonl".into(), "--dataset-path".into(), dataset.into_os_string()])
        .args(["--output-len=1"])
        .args(more)
        .timeout(std::time::Duration::from_secs(300))
        .run();
    let result = result(results);
    (finished, result)
}

/// Fails with everything that `check` finds wrong with one of `cases`; a few are looked at at a time.
fn expect_none<T: Sync>(cases: &[T], check: impl Fn(&T) -> Option<String> + Sync) {
    let (next, found) = (Mutex::new(cases.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(case) = { next.lock().unwrap().next() } {
                    found.lock().unwrap().extend(check(case));
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    assert!(found.is_empty(), "{} of {}:\n{}", found.len(), cases.len(), found.join("\n"));
}

//! Hostile and broken inputs, as tables: an input, an exit code, a message.

mod batch;
mod child_environment;
mod control_characters;
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

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

use crate::job::{job_without_model, result, tiny_model};
use crate::support::bucket_server::BucketServer;
use crate::support::folders::everything_in;
use crate::support::process::{Finished, Process};

/// A job that ends as soon as it looks for its model, with exit code 4. Its results go to `out` in `folder`.
fn short_job(folder: &TempDir) -> Process {
    job_without_model(folder).args(["--model=/nonexistent/model"])
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

/// A bucket that holds the tiny model as `model`.
fn bucket_of_tiny_model() -> (TempDir, BucketServer) {
    let folder = TempDir::new().unwrap();
    copy_of_tiny_model(folder.path());
    let server = BucketServer::start(folder.path());
    (folder, server)
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

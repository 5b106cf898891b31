//! Hostile and broken inputs: each ends in an exit code and a sentence, and leaves nothing behind.

mod ends;
mod templates;
mod tokenizers;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

use crate::job::{job_without_model, result, tiny_model};
use crate::support::process::Finished;

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

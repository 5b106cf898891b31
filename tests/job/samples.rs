//! Every file of `samples/` runs, on the real model that the blueprint names.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{job_without_model, result};
use crate::model::smollm2;
use crate::support::bucket_server::BucketServer;

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(name)
}

/// A folder that holds SmolLM2 where the blueprint looks for it.
fn folder() -> Option<TempDir> {
    let weights = smollm2::file()?;
    let folder = TempDir::new().unwrap();
    let directory = folder.path().join("HuggingFaceTB/SmolLM2-135M-Instruct");
    std::fs::create_dir_all(&directory).unwrap();
    std::os::unix::fs::symlink(&weights, directory.join(weights.file_name().unwrap())).unwrap();
    Some(folder)
}

/// But for its addresses the blueprint runs as it is; a machine without GPUs has the device `cpu`, and prompts are fewer so that
/// the test is short.
#[test]
fn the_blueprint_runs() {
    let Some(folder) = folder() else { return };
    let (place, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = BucketServer::start(folder.path());
    let mut blueprint: Value =
        serde_json::from_slice(&std::fs::read(sample("offline-benchmark.json")).unwrap()).unwrap();
    let input = &mut blueprint["input_object_storage"][0];
    input["par"] = json!(server.url());
    input["mount_location"] = json!(place.path().join("weights"));
    let file = place.path().join("blueprint.json");
    std::fs::write(&file, blueprint.to_string()).unwrap();
    let arguments = ["--device=cpu", "--mlflow-uri=none", "--num-prompts=2"];
    job_without_model(&results).args(["--blueprint".into(), file]).args(arguments).run().expect_code(0);
    let result = result(&results);
    assert_eq!(result["metrics"]["total_input_tokens"], 512.0);
    assert_eq!(result["metrics"]["total_output_tokens"], 64.0);
    assert_eq!(result["backend"]["engine"]["dtype"], "bfloat16");
}

#[test]
fn prompts_and_the_batch_are_answered() {
    let Some(folder) = folder() else { return };
    let model = folder.path().join("HuggingFaceTB/SmolLM2-135M-Instruct");
    for name in ["prompts.jsonl", "batch.jsonl"] {
        let results = TempDir::new().unwrap();
        let arguments = ["--dataset=jsonl", "--output-len=4", "--dtype=float32"];
        job_without_model(&results)
            .args(["--model".into(), model.clone(), "--dataset-path".into(), sample(name)])
            .args(arguments)
            .run()
            .expect_code(0);
        let outputs = super::answers_of(&results);
        let asked = std::fs::read_to_string(sample(name)).unwrap().lines().count();
        assert!(asked > 1 && outputs.lines().count() == asked, "{name}: {outputs}");
    }
}

/// What is added to the folder is to be added here.
#[test]
fn there_is_no_other_sample() {
    let mut names: Vec<_> = std::fs::read_dir(sample("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    // The node pool is the portal's: nothing runs it here.
    assert_eq!(names, ["README.md", "batch.jsonl", "offline-benchmark.json", "prompts.jsonl", "shared-node-pool.json"]);
}

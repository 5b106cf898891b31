//! The acceptance script for machines with GPUs, run to its end on the stand-in, so that it works when there is one.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::model::golden::directory;

#[test]
fn the_acceptance_script_runs_to_its_end() {
    let results = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ran = Command::new(root.join("scripts/gpu-acceptance"))
        .args(["--quick", "--binary", env!("CARGO_BIN_EXE_flashjob"), "--model"])
        .arg(directory("llama-gqa"))
        .arg("--results")
        .arg(results.path())
        .env("STAND_IN_DEVICES", "2")
        // Steps of a size that the stand-in computes in a moment.
        .env("MAX_NUM_BATCHED_TOKENS", "256")
        .env("MAX_MODEL_LEN", "256")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}");
    let report: Value =
        serde_json::from_slice(&std::fs::read(results.path().join("acceptance.json")).unwrap()).unwrap();
    assert_eq!(report["gpus_used"], 2);
    let numbers = report["numbers"].as_array().unwrap();
    // Two golden models and the real one, on one GPU and two, in two formats.
    assert_eq!(numbers.len(), 12, "{said}");
    assert!(numbers.iter().all(|row| row["agrees"] == true && row["device"] == "cuda"), "{said}");
    let sweep = report["sweep"].as_array().unwrap();
    assert_eq!(sweep.iter().filter(|row| row["cuda_graphs"] == true).count(), 2, "{said}");
    assert!(sweep.iter().all(|row| row["mfu"].as_f64().is_some_and(|mfu| mfu > 0.0)), "{said}");
    let divided: Vec<_> = report["blueprint"].as_array().unwrap().iter().collect();
    let sizes =
        |row: &Value| [&row["data_parallel_size"], &row["tensor_parallel_size"]].map(|size| size.as_u64().unwrap());
    assert_eq!(divided.into_iter().map(sizes).collect::<Vec<_>>(), [[1, 1], [1, 2], [2, 1]], "{said}");
}

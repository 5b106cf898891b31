//! `scripts/random-weights`: models that jobs can load, of numbers that are never zero.

use std::path::Path;
use std::process::{Command, Output};

use flashjob_model::Model;
use flashjob_test_support::process::installed;
use flashjob_test_support::project;
use half::bf16;

use crate::job::{job_without_model, result};

fn write(folder: &Path, more: &[&str]) -> Option<Output> {
    let python = installed("python3", "python3")?;
    Some(Command::new(python).arg(project().join("scripts/random-weights")).arg(folder).args(more).output().unwrap())
}

/// All numbers of a file in safetensors' format.
fn numbers(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect()
}

#[test]
fn a_job_runs_on_random_weights_which_are_normal_and_never_zero() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let Some(written) = write(&model, &["--shape=tiny", "--seed=7"]) else { return };
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));

    let all = numbers(&model.join("model.safetensors"));
    // Norms are 1; there are five of 64.
    let (norms, weights): (Vec<f32>, Vec<f32>) = all.into_iter().partition(|&number| number == 1.0);
    assert_eq!((norms.len(), weights.len()), (5 * 64, 2 * 288 * 64 + 2 * (64 * 64 * 3 + 3 * 64 * 96)));
    assert!(weights.iter().all(|&weight| weight != 0.0 && weight.is_finite()));
    let count = weights.len() as f64;
    let mean = weights.iter().map(|&weight| f64::from(weight)).sum::<f64>() / count;
    let deviation = (weights.iter().map(|&weight| f64::from(weight).powi(2)).sum::<f64>() / count).sqrt();
    assert!(mean.abs() < 5e-4 && (deviation - 0.02).abs() < 5e-4, "{mean} ± {deviation}");

    let again = folder.path().join("again");
    write(&again, &["--shape=tiny", "--seed=7"]).unwrap();
    let bytes = |model: &Path| std::fs::read(model.join("model.safetensors")).unwrap();
    assert!(bytes(&model) == bytes(&again), "a seed has its numbers");

    let results = tempfile::tempdir().unwrap();
    job_without_model(&results)
        .args(["--model".into(), model.clone()])
        .args(["--input-len=8", "--output-len=4", "--num-prompts=3"])
        .run()
        .expect_code(0);
    assert_eq!(result(&results)["metrics"]["total_output_tokens"], 12.0);
    let refused = write(&model, &["--shape=tiny"]).unwrap();
    assert!(!refused.status.success(), "a model that is there is left alone");
}

#[test]
fn several_files_and_fewer_layers_are_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let Some(written) = write(folder.path(), &["--shape=tiny", "--layers=1", "--largest-file=50000"]) else { return };
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    assert!(folder.path().join("model-00002-of-00003.safetensors").exists(), "{written:?}");
    let model = Model::open(folder.path()).unwrap();
    assert_eq!((model.config.layers, model.config.head_dim, model.config.tied_head), (1, 16, false));
    assert_eq!(model.parameters, 2 * 288 * 64 + 64 * 64 * 3 + 3 * 64 * 96 + 3 * 64);
}

//! Jobs on a stand-in GPU that goes wrong: each ends within seconds, with the right code and a sentence.

use tempfile::TempDir;

use crate::job::{job, result};
use crate::support::process::Process;

fn gpu_job(results: &TempDir) -> Process {
    job_on("cuda", results)
}

fn job_on(device: &str, results: &TempDir) -> Process {
    let driver = std::env::var("LD_LIBRARY_PATH").expect("scripts/test-cuda sets LD_LIBRARY_PATH");
    let small = ["--dtype=bfloat16", "--max-model-len=64", "--num-prompts=2", "--input-len=8", "--output-len=4"];
    job(results).args(small).env("DEVICE", device).env("LD_LIBRARY_PATH", &driver)
}

#[test]
fn a_job_runs_and_says_where() {
    let results = TempDir::new().unwrap();
    gpu_job(&results).run().expect_code(0);
    let result = result(&results);
    let engine = &result["backend"]["engine"];
    assert_eq!((&engine["device"], &engine["dtype"]), (&"cuda".into(), &"bfloat16".into()));
    assert!(engine["kernels"].as_str().unwrap().contains("compute capability 8.0"), "{engine}");
}

#[test]
fn with_auto_the_gpu_is_taken_where_there_is_one_and_the_cpu_where_there_is_none() {
    for (devices, expected) in [("1", "cuda"), ("0", "cpu")] {
        let results = TempDir::new().unwrap();
        job_on("auto", &results).env("STAND_IN_DEVICES", devices).run().expect_code(0);
        assert_eq!(result(&results)["backend"]["engine"]["device"], expected);
    }
}

#[test]
fn what_goes_wrong_ends_with_its_code_and_says_what() {
    for (variable, value, code, sentences) in [
        ("STAND_IN_DEVICES", "0", 2, &["no CUDA driver", "device=cpu"][..]),
        ("LD_LIBRARY_PATH", "/nonexistent", 2, &["no CUDA driver"]),
        ("STAND_IN_FAIL", "cuInit:1:803", 2, &["CUDA driver"]),
        // Too little for the model, and too little all of a sudden.
        ("STAND_IN_MEMORY", "200000", 4, &["needs", "max-model-len"]),
        ("STAND_IN_FAIL", "cuMemAllocAsync:3:2", 4, &["OUT_OF_MEMORY"]),
        ("STAND_IN_FAIL", "cuMemcpyHtoDAsync_v2:5", 4, &["place weights"]),
        ("STAND_IN_FAIL", "gated_bf16:3", 5, &["compute a step"]),
        ("STAND_IN_FAIL", "cublasGemmEx:9:13", 5, &["compute a step"]),
        ("STAND_IN_FAIL", "cuMemcpyDtoHAsync_v2:2", 5, &["read logits"]),
    ] {
        let results = TempDir::new().unwrap();
        let finished = gpu_job(&results).env(variable, value).run();
        assert_eq!(finished.code(), Some(code), "{variable}={value}: {finished}");
        for sentence in sentences {
            assert!(finished.stderr.contains(sentence), "{variable}={value}: {}", finished.stderr);
        }
    }
}

#[test]
fn more_ranks_than_gpus_end_with_2_naming_both_numbers() {
    let results = TempDir::new().unwrap();
    let finished =
        gpu_job(&results).args(["--tensor-parallel-size=3"]).env("STAND_IN_DEVICES", "2").run().expect_code(2);
    assert!(finished.stderr.contains("tensor-parallel-size=3 is above the 2 GPUs"), "{}", finished.stderr);
}

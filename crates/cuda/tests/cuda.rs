//! What of the GPU path can be run without a GPU: our kernels on the host, and, in a build with feature `cuda`, the engine on
//! a stand-in for NVIDIA's libraries (`scripts/test-cuda`).

#[cfg(feature = "cuda")]
mod ahead;
#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod deterministic;
#[cfg(feature = "cuda")]
mod engine;
#[cfg(feature = "cuda")]
mod options;
mod sampling;
#[cfg(feature = "cuda")]
mod slices;
#[cfg(feature = "cuda")]
mod split_kv;

use std::path::Path;
use std::process::Command;

use flashjob_test_support::process::installed;
use tempfile::TempDir;

/// A program of kernels on the host, in a folder of its own; `None` where there is no compiler.
fn on_host(source: &str) -> Option<(TempDir, Command)> {
    let compiler = installed("g++", "g++")?;
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("on-host");
    let compiled = Command::new(compiler)
        .args([
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-Wall",
            "-Werror",
            "-Wno-unused-function",
            "-Wno-unknown-pragmas",
        ])
        .args(["-I", "tests/cuda/host", "-o"])
        .args([&binary, Path::new(source)])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let program = Command::new(&binary);
    Some((folder, program))
}

#[test]
fn our_kernels_on_the_host_agree_with_double_precision() {
    let Some((_folder, mut program)) = on_host("tests/cuda/kernels_on_host.cpp") else { return };
    let ran = program.output().unwrap();
    let printed = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "the largest errors, where 1 is what rounding allows:\n{printed}");
    for kernel in ["embed_f16", "add_rms_norm_bf16", "norm_heads_f16", "rope_and_cache_bf16", "gated_f16"] {
        assert!(printed.lines().any(|line| line.starts_with(kernel)), "{kernel} was not tried:\n{printed}");
    }
}

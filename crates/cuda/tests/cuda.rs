//! What of the GPU path can be run without a GPU: our kernels on the host, and, in a build with feature `cuda`, the engine on
//! a stand-in for NVIDIA's libraries (`scripts/test-cuda`).

#[cfg(feature = "cuda")]
mod engine;
#[cfg(feature = "cuda")]
mod split_kv;

use std::process::Command;

use flashjob_test_support::process::installed;

#[test]
fn our_kernels_on_the_host_agree_with_double_precision() {
    let Some(compiler) = installed("g++", "g++") else { return };
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("kernels-on-host");
    let compiled = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-unused-function", "-I", "tests/cuda/host", "-o"])
        .arg(&binary)
        .arg("tests/cuda/kernels_on_host.cpp")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let ran = Command::new(&binary).output().unwrap();
    let printed = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "the largest errors, where 1 is what rounding allows:\n{printed}");
    for kernel in ["embed_f16", "add_rms_norm_bf16", "norm_heads_f16", "rope_and_cache_bf16", "gated_f16", "argmax"] {
        assert!(printed.lines().any(|line| line.starts_with(kernel)), "{kernel} was not tried:\n{printed}");
    }
}

//! The environment of child processes: what an engine has use for, and nothing that is a secret.
//!
//! The list says what is passed on, not what is held back: credentials stand in variables of any name (`HF_TOKEN`,
//! `AWS_SECRET_ACCESS_KEY`, `HTTPS_PROXY`, `MLFLOW_TRACKING_URI`), and in spellings that no search for their text finds.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use flashjob_config::redact;

/// Names that are passed on.
const NAMES: [&str; 27] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "TEMP",
    "TMP",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "TOKENIZERS_PARALLELISM",
    "DO_NOT_TRACK",
    "LIBRARY_PATH",
    "CPATH",
    "CC",
    "CXX",
];

/// Beginnings of names that are passed on: of Python, of the engine and of what it computes with.
const FAMILIES: [&str; 30] = [
    "LC_",
    "PYTHON",
    "VLLM_",
    "SGLANG_",
    "SGL_",
    "TORCH",
    "PYTORCH_",
    "TRITON_",
    "CUDA_",
    "CUBLAS_",
    "CUDNN_",
    "NVIDIA_",
    "NCCL_",
    "GLOO_",
    "UCX_",
    "FLASHINFER_",
    "GPU_",
    "HIP_",
    "HSA_",
    "ROCM_",
    "ROCR_",
    "MIOPEN_",
    "AITER_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "DNNL_",
    "ONEDNN_",
    "MALLOC_",
];

/// Words in a name of such a family that say that its value is a secret, as `VLLM_API_KEY`.
const SECRET_WORDS: [&str; 7] = ["KEY", "TOKEN", "SECRET", "PASS", "CREDENTIAL", "AUTH", "COOKIE"];

/// A command that runs `program` with nothing else in its environment.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(std::env::vars_os().filter(|(name, value)| is_passed_on(name, value)));
    command
}

/// A value is looked at, too: a login in a URL is one under any name.
fn is_passed_on(name: &OsStr, value: &OsString) -> bool {
    let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { return false };
    let is_of_family = FAMILIES.iter().any(|family| name.starts_with(family))
        && !SECRET_WORDS.iter().any(|word| name.to_ascii_uppercase().contains(word));
    (NAMES.contains(&name) || is_of_family) && redact(value) == value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on_is_listed_and_no_secret() {
        for (name, value, passed_on) in [
            ("PATH", "/usr/bin:/bin", true),
            ("LD_PRELOAD", "/usr/lib/libtcmalloc.so.4", true),
            ("CUDA_VISIBLE_DEVICES", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", true),
            ("VLLM_LOGGING_LEVEL", "DEBUG", true),
            ("SGLANG_LOG_LEVEL", "debug", true),
            ("SGLANG_API_KEY", "x", false),
            ("PYTHONPATH", "/opt/python", true),
            ("LC_ALL", "C.UTF-8", true),
            ("OMP_NUM_THREADS", "8", true),
            ("HF_HOME", "/cache", true),
            ("HF_TOKEN", "hf_x", false),
            ("HUGGING_FACE_HUB_TOKEN", "hf_x", false),
            ("AWS_ACCESS_KEY_ID", "x", false),
            ("AWS_SECRET_ACCESS_KEY", "x", false),
            ("AWS_SESSION_TOKEN", "x", false),
            ("HTTPS_PROXY", "http://me:word@proxy", false),
            ("https_proxy", "http://proxy", false),
            ("MLFLOW_TRACKING_URI", "https://me:p%40ss@host", false),
            ("MLFLOW_TRACKING_PASSWORD", "x", false),
            ("PAR", "https://host/p/x/n/ns/b/b/o/", false),
            ("VLLM_API_KEY", "x", false),
            ("VLLM_X", "http://me:word@host", false),
            ("TORCH_HOME", "https://host/p/x/n/ns/b/b/o/", false),
            ("PATHS", "x", false),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1", false),
            ("DATABASE_URL", "postgres://x", false),
        ] {
            assert_eq!(is_passed_on(OsStr::new(name), &OsString::from(value)), passed_on, "{name}={value}");
        }
    }
}

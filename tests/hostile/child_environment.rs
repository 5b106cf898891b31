//! The environment of child processes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use crate::job::{job_without_model, tiny_model};

/// Variables with a secret, in every way that one can be there.
const SECRET: [(&str, &str); 14] = [
    ("HF_TOKEN", "s3cr3t"),
    ("HUGGING_FACE_HUB_TOKEN", "s3cr3t"),
    ("AWS_ACCESS_KEY_ID", "s3cr3t"),
    ("AWS_SECRET_ACCESS_KEY", "s3cr3t"),
    ("HTTPS_PROXY", "http://me:s3cr3t@proxy"),
    ("http_proxy", "http://me:s3cr3t@proxy"),
    ("PIP_INDEX_URL", "https://me:s3cr3t@index"),
    ("MLFLOW_TRACKING_URI", "http://me:s3%63r3t%40@127.0.0.1:1"),
    ("MLFLOW_TRACKING_AWS_SIGV4", "s3cr3t"),
    ("PGPASSWORD", "s3cr3t"),
    ("VLLM_API_KEY", "s3cr3t"),
    ("VLLM_PROXY", "http://me:s3cr3t@proxy"),
    ("NCCL_SECRET", "s3cr3t"),
    ("MY_OWN", "s3cr3t"),
];

const USEFUL: [(&str, &str); 5] = [
    ("CUDA_VISIBLE_DEVICES", "0"),
    ("OMP_NUM_THREADS", "2"),
    ("VLLM_LOGGING_LEVEL", "INFO"),
    ("LC_ALL", "C.UTF-8"),
    ("HF_HOME", "/cache"),
];

#[test]
fn an_engine_in_a_child_process_gets_no_secret() {
    let folder = TempDir::new().unwrap();
    // Finds every package, and ends at once as an engine.
    let python = folder.path().join("bin/python3");
    fs::create_dir(python.parent().unwrap()).unwrap();
    fs::write(&python, "#!/bin/sh\nexport -p >> \"$HOME/environment\"\necho --- >> \"$HOME/environment\"\n").unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", python.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut job = job_without_model(&folder)
        .args(["--model".into(), tiny_model()])
        .args(["--backend=vllm", "--mlflow-uri=none"])
        .env("PATH", path)
        .env("HOME", folder.path());
    for (name, value) in SECRET.into_iter().chain(USEFUL) {
        job = job.env(name, value);
    }
    let finished = job.run().expect_code(4);
    let environment = fs::read_to_string(folder.path().join("environment")).unwrap();
    assert_eq!(
        environment.matches("---").count(),
        2,
        "one that was asked for a package, one to be the engine: {finished}"
    );
    for (name, _) in SECRET {
        assert!(!environment.contains(&format!(" {name}=")), "{name} in {environment}");
    }
    assert!(!environment.contains("s3cr3t") && !environment.contains("s3%63r3t"), "{environment}");
    for (name, value) in USEFUL {
        assert_eq!(environment.matches(&format!(" {name}='{value}'")).count(), 2, "{name} in {environment}");
    }
}

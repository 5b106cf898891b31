//! The row of the table in `crates/mount/tests/mount/faults.rs` that takes a whole job.

use std::fs;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::job::{job_without_model, tiny_model};
use crate::support::bucket_server::BucketServer;
use crate::support::mount_table::mounts_at;

#[test]
fn sigterm_during_a_read() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("llama");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(tiny_model()).unwrap().map(|file| file.unwrap()) {
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let server = BucketServer::start(folder.path());
    server.fault(json!({"kind": "stall", "after_bytes": 10, "operation": "get", "name_contains": "safetensors"}));
    let results = TempDir::new().unwrap();
    let location = results.path().join("models");
    let job = job_without_model(&results)
        .args(["--model=llama", "--par", server.url(), "--mount-location", &location.display().to_string()])
        .start();
    while !server.requests()["requests"].to_string().contains("safetensors") {
        std::thread::sleep(Duration::from_millis(10));
    }
    job.signal(libc::SIGTERM);
    job.wait().expect_code(143);
    assert_eq!(mounts_at(&location), 0);
}

//! `flashjob publish` that is broken off in the middle of a file, and the next one that goes on with it.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::support::Flashjob as _;
use crate::support::bucket_server::BucketServer;
use crate::support::process::Process;

const TOKEN: &str = "s3cr3t-t0ken";
/// Parts of 16 MiB, the last one shorter.
const BYTES: usize = (5 << 24) + 12_345;
const PARTS: u64 = 6;
/// Parts that arrive before the process ends.
const ARRIVED: u64 = 2;

fn publish(results: &Path, url: &str) -> Process {
    Process::flashjob().args(["publish", &results.display().to_string(), "--output-par", url])
}

#[test]
fn parts_that_arrived_are_not_sent_again_by_the_next_process() {
    let content: Vec<u8> = (0..BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let (bucket, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let server = BucketServer::start_with(bucket.path(), &["--par", &json!({ "token": TOKEN }).to_string()]);
        std::fs::write(results.path().join("result.json"), "{}").unwrap();
        std::fs::write(results.path().join("requests.jsonl"), &content).unwrap();
        // The others hang on their way.
        server.fault(json!({"kind": "latency", "seconds": 600.0, "operation": "put_part", "after": ARRIVED}));

        let running = publish(results.path(), server.url()).start();
        while recorded(results.path()) < ARRIVED {
            std::thread::sleep(Duration::from_millis(10));
        }
        running.signal(signal);
        let finished = running.wait();
        assert_eq!(finished.signal(), Some(signal), "{finished}");
        assert_eq!(server.open_uploads(), json!(["requests.jsonl"]));
        for entry in std::fs::read_dir(results.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()), "{}", path.display());
        }

        server.no_faults();
        server.forget_requests();
        let finished = publish(results.path(), server.url()).run().expect_code(0);
        assert!(!finished.stdout.contains(TOKEN) && !finished.stderr.contains(TOKEN), "{finished}");
        assert_eq!(server.count("put_part"), PARTS - ARRIVED);
        assert_eq!((server.count("open_upload"), server.count("put")), (0, 0), "the other file is there, too");
        assert!(std::fs::read(bucket.path().join("requests.jsonl")).unwrap() == content);
        assert_eq!(server.open_uploads(), json!([]));
        let mut left: Vec<_> =
            std::fs::read_dir(results.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["requests.jsonl", "result.json"]);
        let requests = server.requests()["requests"].to_string();
        assert!(!requests.contains(".upload-"), "the record is no result: {requests}");
    }
}

/// Parts that the record names.
fn recorded(results: &Path) -> u64 {
    let entries = std::fs::read_dir(results).unwrap().map(|entry| entry.unwrap().path());
    let records = entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(".upload-"));
    let text: String = records.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    (text.lines().count() as u64).saturating_sub(1)
}

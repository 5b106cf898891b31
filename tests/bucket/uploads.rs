//! Writes in one request and in parts: whole and right, or not there at all.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use flashjob::bucket::{Bucket, ErrorKind};
use flashjob::event::Events;
use serde_json::json;

use super::{Seen, Served, impatient, noise, open_with, patient, shown};

const PART_BYTES: u64 = 64 << 10;
const NAME: &str = "results/a b/run.json";

/// A file outside of the bucket's folder.
fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

async fn content(bucket: &Bucket, name: &str) -> Bytes {
    let object = bucket.head(name).await.unwrap();
    bucket.get(&object, 0..object.size_bytes).await.unwrap()
}

#[tokio::test]
async fn bodies_of_any_length_go_round() {
    let served = Served::empty();
    let (seen, events) = Seen::listen();
    let bucket = open_with(served.server.url(), patient(), events);
    let mut sent = 0;
    for length in [0, 1, 65_535, 65_536, 65_537, 1_000_000] {
        let body = noise(length);
        bucket.put(NAME, body.clone().into()).await.unwrap();
        sent += length as u64;
        assert!(content(&bucket, NAME).await == body, "{length}");
        assert_eq!(std::fs::read(served.path().join(NAME)).unwrap(), body);
    }
    assert_eq!(seen.bytes_written(), sent);
}

#[tokio::test]
async fn files_go_in_parts_when_they_are_longer_than_one() {
    let served = Served::empty();
    let (seen, events) = Seen::listen();
    let bucket = open_with(served.server.url(), patient(), events).with_part_bytes(PART_BYTES);
    let mut sent = 0;
    for (length, parts) in [(0, 0), (1, 0), (PART_BYTES, 0), (PART_BYTES + 1, 2), (7 * PART_BYTES, 7), (1_000_001, 16)]
    {
        served.server.forget_requests();
        let body = noise(length as usize);
        let (_folder, path) = file(&body);
        bucket.put_file(NAME, &path).await.unwrap();
        sent += length;
        let counts = served.server.requests()["counts"].clone();
        assert_eq!(counts["put_part"].as_u64().unwrap_or(0), parts, "{length}");
        assert_eq!(counts["commit_upload"].as_u64().unwrap_or(0), u64::from(parts > 0), "{length}");
        assert!(content(&bucket, NAME).await == body, "{length}");
        // The service knows no MD5 of what came in parts.
        assert_eq!(bucket.head(NAME).await.unwrap().md5.is_none(), parts > 0);
    }
    assert_eq!(seen.bytes_written(), sent);
    assert_eq!(served.server.open_uploads(), json!([]));
}

#[tokio::test]
async fn names_that_urls_resolve_are_uploaded_under_their_own_name() {
    let served = Served::empty();
    let bucket = served.open().with_part_bytes(PART_BYTES);
    let body = noise(100_000);
    let (_folder, path) = file(&body);
    for name in ["dir/../x", "./x", "a//b", "x/id/7/1", "ü +%2F?"] {
        bucket.put_file(name, &path).await.unwrap();
        assert!(content(&bucket, name).await == body, "{name}");
    }
    assert_eq!(bucket.list("").await.unwrap().len(), 5);
}

#[tokio::test]
async fn faults_that_pass_are_survived() {
    let served = Served::empty();
    let bucket = served.open().with_part_bytes(PART_BYTES);
    let body = noise(500_000);
    let (_folder, path) = file(&body);
    for (index, fault) in [
        json!({"kind": "status", "status": 429, "retry_after": "0", "count": 3}),
        json!({"kind": "status", "status": 500, "count": 2, "operation": "put_part"}),
        json!({"kind": "status", "status": 503, "count": 2, "operation": "commit_upload"}),
        json!({"kind": "status", "status": 409, "code": "ConcurrentObjectUpdate", "count": 2, "operation": "commit_upload"}),
        json!({"kind": "latency", "seconds": 30.0, "count": 1, "operation": "put_part"}),
        json!({"kind": "lost_answer", "count": 2, "operation": "put_part"}),
        json!({"kind": "lost_answer", "count": 1, "operation": "open_upload"}),
        // The commit got through, only its answer did not: the second one finds no upload.
        json!({"kind": "lost_answer", "count": 1, "operation": "commit_upload"}),
    ]
    .into_iter()
    .enumerate()
    {
        served.server.fault(fault.clone());
        let name = format!("run-{index}");
        bucket.put_file(&name, &path).await.unwrap_or_else(|error| panic!("{fault}: {error}"));
        assert!(content(&bucket, &name).await == body, "{fault}");
        bucket.put(&name, body.clone().into()).await.unwrap();
        assert_eq!(served.server.admin("GET", "/admin/faults", None), json!([]), "{fault} did not happen");
    }
}

#[tokio::test]
async fn an_upload_that_fails_is_aborted_and_leaves_nothing() {
    use ErrorKind as Kind;
    let served = Served::empty();
    let (_folder, path) = file(&noise(500_000));
    for (fault, kind) in [
        (json!({"kind": "status", "status": 401, "after": 3, "operation": "put_part"}), Kind::ParNoLongerWorks),
        (json!({"kind": "status", "status": 400, "after": 1, "operation": "put_part"}), Kind::InvalidRequest),
        (json!({"kind": "status", "status": 500, "operation": "put_part"}), Kind::ServerFailed),
        (
            json!({"kind": "status", "status": 404, "code": "NoSuchUpload", "operation": "commit_upload"}),
            Kind::NotFound,
        ),
        (json!({"kind": "status", "status": 429, "operation": "commit_upload"}), Kind::Throttled),
        (json!({"kind": "lost_answer", "operation": "put_part"}), Kind::Unreachable),
        (json!({"kind": "wrong_md5", "operation": "put_part"}), Kind::Protocol),
    ] {
        served.server.fault(fault.clone());
        let bucket = open_with(served.server.url(), impatient(), Events::default()).with_part_bytes(PART_BYTES);
        let error = bucket.put_file(NAME, &path).await.expect_err(&fault.to_string());
        assert_eq!(error.kind(), kind, "{fault}: {}", shown(&error));
        assert!(served.server.count("abort_upload") > 0, "{fault}");
        assert_eq!(served.server.open_uploads(), json!([]), "{fault}");
        served.server.no_faults();
        assert_eq!(bucket.head(NAME).await.unwrap_err().kind(), Kind::NotFound, "{fault}");
        served.server.forget_requests();
    }
}

/// The object is there then, but nobody is told that it is what was sent.
#[tokio::test]
async fn parts_that_were_put_together_wrongly_are_no_success() {
    let served = Served::empty();
    let bucket = served.open().with_part_bytes(PART_BYTES);
    let (_folder, path) = file(&noise(500_000));
    served.server.fault(json!({"kind": "wrong_md5", "operation": "commit_upload"}));
    let error = bucket.put_file(NAME, &path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{}", shown(&error));
    assert!(shown(&error).contains("other parts"), "{}", shown(&error));
}

#[tokio::test]
async fn an_upload_that_is_dropped_is_aborted() {
    let served = Served::empty();
    let bucket = served.open().with_part_bytes(PART_BYTES);
    let (_folder, path) = file(&noise(500_000));
    served.server.fault(json!({"kind": "latency", "seconds": 30.0, "operation": "put_part"}));
    let upload = tokio::spawn(async move { bucket.put_file(NAME, &path).await });
    // Not only is it open: its address has reached the client, which sends parts to it.
    while served.server.count("put_part") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    upload.abort();
    assert!(upload.await.unwrap_err().is_cancelled());
    // In the background: it comes, or this test never ends.
    while served.server.open_uploads() != json!([]) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// However it was sent, and only where every byte is the same.
#[tokio::test]
async fn what_is_there_already_is_known() {
    let served = Served::empty();
    let bucket = served.open().with_part_bytes(PART_BYTES);
    for length in [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES] {
        let mut body = noise(length as usize);
        let (_folder, path) = file(&body);
        let name = format!("{length}");
        assert!(!bucket.holds(&name, &path).await.unwrap(), "{length}: nothing is there");
        bucket.put_file(&name, &path).await.unwrap();
        assert!(bucket.holds(&name, &path).await.unwrap(), "{length}");
        body.push(0);
        std::fs::write(&path, &body).unwrap();
        assert!(!bucket.holds(&name, &path).await.unwrap(), "{length}: it has grown");
        if length > 0 {
            body.pop();
            body[length as usize / 2] ^= 1;
            std::fs::write(&path, &body).unwrap();
            assert!(!bucket.holds(&name, &path).await.unwrap(), "{length}: a bit differs");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bucket.holds(&name, &path).await.unwrap_err().kind(), ErrorKind::LocalFile);
    }
    let (_folder, path) = file(b"x");
    bucket.put_file(NAME, &path).await.unwrap();
    let blind = super::open(&served.server.par(json!({"access": "AnyObjectWrite"})));
    assert!(!blind.holds(NAME, &path).await.unwrap());
    served.server.fault(json!({"kind": "status", "status": 500, "operation": "head"}));
    let impatient = open_with(served.server.url(), impatient(), Events::default());
    assert_eq!(impatient.holds(NAME, &path).await.unwrap_err().kind(), ErrorKind::ServerFailed);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let served = Served::empty();
    let bucket = served.open().with_part_bytes(PART_BYTES);
    let folder = tempfile::TempDir::new().unwrap();
    for path in [folder.path().join("missing"), folder.path().to_owned()] {
        let error = bucket.put_file(NAME, &path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LocalFile);
        assert!(shown(&error).contains(&path.display().to_string()), "{error}");
    }
    assert_eq!(bucket.list("").await.unwrap(), []);
}

#[tokio::test]
async fn uploads_need_a_par_that_writes() {
    let served = Served::empty();
    let bucket = super::open(&served.server.par(json!({"access": "AnyObjectRead"}))).with_part_bytes(PART_BYTES);
    let (_folder, path) = file(&noise(500_000));
    let error = bucket.put_file(NAME, &path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WritingNotAllowed, "{}", shown(&error));
}

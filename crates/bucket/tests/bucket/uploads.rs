//! Writes in one request and in parts: whole and right, or not there at all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use flashjob_bucket::{Bucket, ErrorKind, RetryPolicy};
use flashjob_event::Events;
use serde_json::json;

use super::{Seen, Served, TOKEN, impatient, noise, open_with, patient, shown};

const PART_BYTES: u64 = 64 << 10;
const NAME: &str = "results/a b/run.json";

/// A file outside of the bucket's folder.
fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

/// The folder for records of uploads that do not end.
fn beside(path: &Path) -> &Path {
    path.parent().unwrap()
}

/// The records that are there.
fn records(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(beside(path)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|entry| entry != path).map(|entry| std::fs::read_to_string(entry).unwrap()).collect()
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
        bucket.put_file(NAME, &path, beside(&path)).await.unwrap();
        sent += length;
        let counts = served.server.requests()["counts"].clone();
        assert_eq!(counts["put_part"].as_u64().unwrap_or(0), parts, "{length}");
        assert_eq!(counts["commit_upload"].as_u64().unwrap_or(0), u64::from(parts > 0), "{length}");
        assert!(content(&bucket, NAME).await == body, "{length}");
        // The service knows no MD5 of what came in parts.
        assert_eq!(bucket.head(NAME).await.unwrap().md5.is_none(), parts > 0);
        assert!(records(&path).is_empty());
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
        bucket.put_file(name, &path, beside(&path)).await.unwrap();
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
        bucket.put_file(&name, &path, beside(&path)).await.unwrap_or_else(|error| panic!("{fault}: {error}"));
        assert!(content(&bucket, &name).await == body, "{fault}");
        bucket.put(&name, body.clone().into()).await.unwrap();
        assert_eq!(served.server.admin("GET", "/admin/faults", None), json!([]), "{fault} did not happen");
    }
}

#[tokio::test]
async fn an_upload_that_fails_for_good_is_aborted_and_leaves_nothing() {
    use ErrorKind as Kind;
    let served = Served::empty();
    let (_folder, path) = file(&noise(500_000));
    for (fault, kind) in [
        (json!({"kind": "status", "status": 400, "after": 1, "operation": "put_part"}), Kind::InvalidRequest),
        (
            json!({"kind": "status", "status": 404, "code": "NoSuchUpload", "operation": "commit_upload"}),
            Kind::NotFound,
        ),
        (json!({"kind": "wrong_md5", "operation": "put_part"}), Kind::Protocol),
    ] {
        served.server.fault(fault.clone());
        let bucket = open_with(served.server.url(), impatient(), Events::default()).with_part_bytes(PART_BYTES);
        let error = bucket.put_file(NAME, &path, beside(&path)).await.expect_err(&fault.to_string());
        assert_eq!(error.kind(), kind, "{fault}: {}", shown(&error));
        assert!(served.server.count("abort_upload") > 0, "{fault}");
        assert_eq!(served.server.open_uploads(), json!([]), "{fault}");
        assert!(records(&path).is_empty(), "{fault}");
        served.server.no_faults();
        assert_eq!(bucket.head(NAME).await.unwrap_err().kind(), Kind::NotFound, "{fault}");
        served.server.forget_requests();
    }
}

/// Another process is another [`Bucket`] here: they share the folder and nothing else.
#[tokio::test]
async fn an_upload_that_may_still_work_is_left_to_who_comes_next() {
    use ErrorKind as Kind;
    let body = noise(500_000);
    for (fault, kind, most_arrived) in [
        (json!({"kind": "status", "status": 401, "after": 3, "operation": "put_part"}), Kind::ParNoLongerWorks, 3),
        (json!({"kind": "status", "status": 500, "after": 3, "operation": "put_part"}), Kind::ServerFailed, 3),
        (json!({"kind": "status", "status": 500, "operation": "put_part"}), Kind::ServerFailed, 0),
        (json!({"kind": "status", "status": 429, "operation": "commit_upload"}), Kind::Throttled, 8),
        (json!({"kind": "lost_answer", "operation": "put_part"}), Kind::Unreachable, 0),
    ] {
        let served = Served::empty();
        let (_folder, path) = file(&body);
        served.server.fault(fault.clone());
        let bucket = open_with(served.server.url(), impatient(), Events::default()).with_part_bytes(PART_BYTES);
        let error = bucket.put_file(NAME, &path, beside(&path)).await.expect_err(&fault.to_string());
        assert_eq!(error.kind(), kind, "{fault}: {}", shown(&error));
        assert_eq!(served.server.open_uploads(), json!([NAME]), "{fault}");
        let [record] = &records(&path)[..] else { panic!("{fault}: one record") };
        assert!(!record.contains(TOKEN), "{record}");
        // A part may have arrived without its answer having come back in time.
        let arrived = record.lines().count() as u64 - 1;
        assert!(arrived <= most_arrived && (most_arrived < 8 || arrived == 8), "{fault}: {record}");

        served.server.no_faults();
        served.server.forget_requests();
        let (seen, events) = Seen::listen();
        let bucket = open_with(served.server.url(), patient(), events).with_part_bytes(PART_BYTES);
        bucket.put_file(NAME, &path, beside(&path)).await.unwrap();
        assert!(content(&bucket, NAME).await == body, "{fault}");
        assert_eq!(served.server.count("put_part"), 8 - arrived, "{fault}");
        assert_eq!(seen.uploads(), [(8, arrived, None)], "{fault}");
        assert_eq!((served.server.count("open_upload"), served.server.count("commit_upload")), (0, 1), "{fault}");
        assert_eq!((served.server.open_uploads(), records(&path).len()), (json!([]), 0), "{fault}");
    }
}

/// Leaves an upload of `path` in three of its eight parts.
async fn broken_off(served: &Served, path: &Path) {
    served.server.fault(json!({"kind": "status", "status": 500, "after": 3, "operation": "put_part"}));
    let bucket = open_with(served.server.url(), impatient(), Events::default()).with_part_bytes(PART_BYTES);
    bucket.put_file(NAME, path, beside(path)).await.unwrap_err();
    served.server.no_faults();
    served.server.forget_requests();
    assert_eq!((served.server.open_uploads(), records(path).len()), (json!([NAME]), 1));
}

/// Whatever was left is no use then, and is given up where the service still has it.
#[tokio::test]
async fn what_was_left_of_something_else_is_begun_anew() {
    let body = noise(500_000);
    type Change = fn(&Path, &Path, &Served);
    let changes: [(&str, Change); 6] = [
        ("the file has grown", |path, _, _| std::fs::write(path, noise(500_001)).unwrap()),
        ("a part that arrived is another one", |path, _, _| {
            let mut body = noise(500_000);
            body[PART_BYTES as usize + 7] ^= 1;
            std::fs::write(path, body).unwrap();
        }),
        ("the file fits in one part", |path, _, _| std::fs::write(path, noise(1000)).unwrap()),
        ("the record says nonsense of its parts", |_, record, _| {
            let text = std::fs::read_to_string(record).unwrap();
            std::fs::write(record, text.replace("\"part\":1,", "\"part\":0,")).unwrap();
        }),
        ("the record leads elsewhere", |_, record, _| {
            let text = std::fs::read_to_string(record).unwrap();
            std::fs::write(record, text.replace("/n/development/", "/../development/")).unwrap();
        }),
        ("the service has forgotten it", |_, record, served| {
            let text = std::fs::read_to_string(record).unwrap();
            let begun: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
            let path = format!("/p/{TOKEN}{}", begun["behind_token"].as_str().unwrap());
            let answer = served.server.request("DELETE", &path, "");
            assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        }),
    ];
    for (what, change) in changes {
        let served = Served::empty();
        let (_folder, path) = file(&body);
        broken_off(&served, &path).await;
        let record = std::fs::read_dir(beside(&path)).unwrap().map(|entry| entry.unwrap().path());
        let record = record.into_iter().find(|entry| *entry != path).unwrap();
        change(&path, &record, &served);
        let bucket = served.open().with_part_bytes(PART_BYTES);
        bucket.put_file(NAME, &path, beside(&path)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(content(&bucket, NAME).await == std::fs::read(&path).unwrap(), "{what}");
        assert!(records(&path).is_empty(), "{what}");
        // A record that cannot be trusted does not say what could be given up.
        let left = if what == "the record leads elsewhere" { json!([NAME]) } else { json!([]) };
        assert_eq!(served.server.open_uploads(), left, "{what}");
    }
}

/// As after a kill between the commit and the end of its record.
#[tokio::test]
async fn what_was_left_of_an_object_that_is_there_is_given_up() {
    let served = Served::empty();
    let body = noise(500_000);
    let (_folder, path) = file(&body);
    broken_off(&served, &path).await;
    let bucket = served.open().with_part_bytes(PART_BYTES);
    let (_elsewhere, copy) = file(&body);
    bucket.put_file(NAME, &copy, beside(&copy)).await.unwrap();
    assert_eq!(served.server.open_uploads(), json!([NAME]));
    assert!(bucket.holds(NAME, &path, beside(&path)).await.unwrap());
    assert_eq!((served.server.open_uploads(), records(&path).len()), (json!([]), 0));
}

#[tokio::test]
async fn two_processes_do_not_take_one_upload() {
    let served = Served::empty();
    let body = noise(500_000);
    let (_folder, path) = file(&body);
    // Three of the first one's parts never get there.
    served.server.fault(json!({"kind": "latency", "seconds": 600.0, "operation": "put_part", "after": 1, "count": 3}));
    let (seen, events) = Seen::listen();
    let policy = RetryPolicy { progress_timeout: Duration::from_secs(600), ..patient() };
    let bucket = open_with(served.server.url(), policy, events).with_part_bytes(PART_BYTES);
    let first = tokio::spawn({
        let (bucket, path) = (bucket.clone(), path.clone());
        async move { bucket.put_file(NAME, &path, beside(&path)).await }
    });
    while served.server.admin("GET", "/admin/faults", None) != json!([]) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bucket.put_file(NAME, &path, beside(&path)).await.unwrap();
    assert!(content(&bucket, NAME).await == body);
    let resumable: Vec<bool> = seen.uploads().iter().map(|(.., not_resumable)| not_resumable.is_none()).collect();
    assert_eq!(resumable, [true, false]);
    // The first one's is still its own.
    assert_eq!((served.server.open_uploads(), records(&path).len()), (json!([NAME]), 1));
    assert!(bucket.holds(NAME, &path, beside(&path)).await.unwrap());
    assert_eq!((served.server.open_uploads(), records(&path).len()), (json!([NAME]), 1));
    first.abort();
    first.await.unwrap_err();
    assert!(bucket.holds(NAME, &path, beside(&path)).await.unwrap());
    assert_eq!((served.server.open_uploads(), records(&path).len()), (json!([]), 0));
}

#[tokio::test]
async fn where_nothing_can_be_recorded_the_upload_goes_on_without() {
    let served = Served::empty();
    let (_folder, path) = file(&noise(500_000));
    let (seen, events) = Seen::listen();
    let bucket = open_with(served.server.url(), impatient(), events).with_part_bytes(PART_BYTES);
    let nowhere = path.join("no folder");
    bucket.put_file(NAME, &path, &nowhere).await.unwrap();
    served.server.fault(json!({"kind": "status", "status": 500, "after": 3, "operation": "put_part"}));
    bucket.put_file("other", &path, &nowhere).await.unwrap_err();
    assert_eq!(served.server.open_uploads(), json!([]), "nobody could go on with it");
    assert!(seen.uploads().iter().all(|(_, there, not_resumable)| *there == 0 && not_resumable.is_some()));
}

/// The object is there then, but nobody is told that it is what was sent.
#[tokio::test]
async fn parts_that_were_put_together_wrongly_are_no_success() {
    let served = Served::empty();
    let bucket = served.open().with_part_bytes(PART_BYTES);
    let (_folder, path) = file(&noise(500_000));
    served.server.fault(json!({"kind": "wrong_md5", "operation": "commit_upload"}));
    let error = bucket.put_file(NAME, &path, beside(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{}", shown(&error));
    assert!(shown(&error).contains("other parts"), "{}", shown(&error));
}

/// Dropped as a signal drops it: left where it is recorded, aborted where it is not.
#[tokio::test]
async fn an_upload_that_is_dropped_is_left_or_aborted() {
    for recorded in [true, false] {
        let served = Served::empty();
        let bucket = served.open().with_part_bytes(PART_BYTES);
        let (_folder, path) = file(&noise(500_000));
        let records_in = if recorded { beside(&path).to_owned() } else { path.join("no folder") };
        served.server.fault(json!({"kind": "latency", "seconds": 30.0, "operation": "put_part"}));
        let upload = tokio::spawn({
            let path = path.clone();
            async move { bucket.put_file(NAME, &path, &records_in).await }
        });
        // Not only is it open: its address has reached the client, which sends parts to it.
        while served.server.count("put_part") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        upload.abort();
        assert!(upload.await.unwrap_err().is_cancelled());
        if recorded {
            assert_eq!(records(&path).len(), 1);
            assert_eq!((served.server.open_uploads(), served.server.count("abort_upload")), (json!([NAME]), 0));
            continue;
        }
        // In the background: it comes, or this test never ends.
        while served.server.open_uploads() != json!([]) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
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
        assert!(!bucket.holds(&name, &path, beside(&path)).await.unwrap(), "{length}: nothing is there");
        bucket.put_file(&name, &path, beside(&path)).await.unwrap();
        assert!(bucket.holds(&name, &path, beside(&path)).await.unwrap(), "{length}");
        body.push(0);
        std::fs::write(&path, &body).unwrap();
        assert!(!bucket.holds(&name, &path, beside(&path)).await.unwrap(), "{length}: it has grown");
        if length > 0 {
            body.pop();
            body[length as usize / 2] ^= 1;
            std::fs::write(&path, &body).unwrap();
            assert!(!bucket.holds(&name, &path, beside(&path)).await.unwrap(), "{length}: a bit differs");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bucket.holds(&name, &path, beside(&path)).await.unwrap_err().kind(), ErrorKind::LocalFile);
    }
    let (_folder, path) = file(b"x");
    bucket.put_file(NAME, &path, beside(&path)).await.unwrap();
    let blind = super::open(&served.server.par(json!({"access": "AnyObjectWrite"})));
    assert!(!blind.holds(NAME, &path, beside(&path)).await.unwrap());
    served.server.fault(json!({"kind": "status", "status": 500, "operation": "head"}));
    let impatient = open_with(served.server.url(), impatient(), Events::default());
    assert_eq!(impatient.holds(NAME, &path, beside(&path)).await.unwrap_err().kind(), ErrorKind::ServerFailed);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let served = Served::empty();
    let bucket = served.open().with_part_bytes(PART_BYTES);
    let folder = tempfile::TempDir::new().unwrap();
    for path in [folder.path().join("missing"), folder.path().to_owned()] {
        let error = bucket.put_file(NAME, &path, beside(&path)).await.unwrap_err();
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
    let error = bucket.put_file(NAME, &path, beside(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WritingNotAllowed, "{}", shown(&error));
}

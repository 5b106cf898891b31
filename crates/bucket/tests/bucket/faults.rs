//! The fault table of reads: what passes is survived with the right bytes, what stays is told apart.

use std::time::Duration;

use flashjob_bucket::{ErrorKind, Object};
use flashjob_event::Events;
use serde_json::{Value, json};

use super::{Seen, Served, TOKEN, impatient, noise, open, open_with, patient, shown};
use crate::support::bucket_server::BucketServer;

const NAME: &str = "weights/model.safetensors";
const RANGE: std::ops::Range<u64> = 1_000..2_500_001;

fn served() -> (Served, Vec<u8>) {
    let content = noise(3_000_000);
    (Served::with(&[(NAME, &content)]), content)
}

#[tokio::test]
async fn faults_that_pass_are_survived_with_the_right_bytes() {
    let (served, content) = served();
    let (seen, events) = Seen::listen();
    let object = served.open().head(NAME).await.unwrap();
    for (fault, reason) in [
        (json!({"kind": "status", "status": 429, "count": 3}), "throttled"),
        (json!({"kind": "status", "status": 429, "count": 2, "retry_after": "0"}), "throttled"),
        (
            json!({"kind": "status", "status": 503, "count": 2, "retry_after": "Thu, 01 Jan 1970 00:00:00 GMT"}),
            "throttled",
        ),
        (json!({"kind": "status", "status": 500, "count": 3}), "server_error"),
        (json!({"kind": "status", "status": 502, "count": 1}), "server_error"),
        (json!({"kind": "status", "status": 408, "count": 1}), "timeout"),
        (json!({"kind": "reset", "after_bytes": 0, "count": 2}), "reset"),
        (json!({"kind": "reset", "after_bytes": 1_200_000, "count": 2}), "reset"),
        (json!({"kind": "short_body", "after_bytes": 0, "count": 2}), "short_body"),
        (json!({"kind": "short_body", "after_bytes": 700_001, "count": 3}), "short_body"),
        (json!({"kind": "stall", "after_bytes": 0, "count": 1}), "timeout"),
        (json!({"kind": "stall", "after_bytes": 500_000, "count": 1}), "timeout"),
        (json!({"kind": "latency", "seconds": 30.0, "count": 1}), "timeout"),
        (json!({"kind": "lost_answer", "count": 2}), "reset"),
        (json!({"kind": "wrong_content_range", "count": 2}), "protocol"),
        (json!({"kind": "wrong_length", "count": 2}), "protocol"),
        (json!({"kind": "ignored_range", "count": 2}), "protocol"),
    ] {
        served.server.fault(fault.clone());
        let bucket = open_with(served.server.url(), patient(), events.clone());
        let got = bucket.get(&object, RANGE).await.unwrap_or_else(|error| panic!("{fault}: {error}"));
        assert!(got == content[RANGE.start as usize..RANGE.end as usize], "{fault}: wrong bytes");
        let reasons = std::mem::take(&mut *seen.0.lock().unwrap());
        let again = Seen(reasons.into());
        assert!(again.retries().contains(&reason), "{fault}: {:?}", again.retries());
        let left = served.server.admin("GET", "/admin/faults", None);
        assert_eq!(left, json!([]), "{fault} did not happen");
    }
}

#[tokio::test]
async fn faults_that_stay_are_told_apart() {
    use ErrorKind as Kind;
    let (served, _) = served();
    let object = served.open().head(NAME).await.unwrap();
    let many = u64::MAX;
    let prefix = "The prefix from the request and the prefix from PAR are not compatible";
    for (fault, kind, most_requests) in [
        (json!({"kind": "status", "status": 401}), Kind::ParNoLongerWorks, 1),
        (json!({"kind": "status", "status": 401, "message": format!("no PAR {TOKEN}")}), Kind::ParNoLongerWorks, 1),
        (json!({"kind": "status", "status": 401, "message": prefix}), Kind::OutsidePrefix, 1),
        (json!({"kind": "status", "status": 403}), Kind::ParNoLongerWorks, 1),
        (json!({"kind": "status", "status": 404, "code": "BucketNotFound"}), Kind::ParNoLongerWorks, 1),
        (json!({"kind": "status", "status": 404}), Kind::NotFound, 1),
        (json!({"kind": "status", "status": 400}), Kind::InvalidRequest, 1),
        (json!({"kind": "status", "status": 302}), Kind::Protocol, 1),
        (json!({"kind": "changed_etag"}), Kind::Changed, 1),
        (json!({"kind": "changed_etag", "ignores_if_match": true}), Kind::Changed, 1),
        (json!({"kind": "status", "status": 429}), Kind::Throttled, many),
        (json!({"kind": "status", "status": 429, "retry_after": "3600"}), Kind::Throttled, 1),
        (json!({"kind": "status", "status": 503, "retry_after": "Fri, 01 Jan 2100 00:00:00 GMT"}), Kind::Throttled, 1),
        (json!({"kind": "status", "status": 500}), Kind::ServerFailed, many),
        (json!({"kind": "reset", "after_bytes": 0}), Kind::Unreachable, many),
        (json!({"kind": "short_body", "after_bytes": 0}), Kind::Unreachable, many),
        (json!({"kind": "stall", "after_bytes": 0}), Kind::Unreachable, many),
        (json!({"kind": "latency", "seconds": 30.0}), Kind::Unreachable, many),
        (json!({"kind": "lost_answer"}), Kind::Unreachable, many),
        (json!({"kind": "wrong_content_range"}), Kind::Protocol, 4),
        (json!({"kind": "wrong_length"}), Kind::Protocol, 4),
        (json!({"kind": "ignored_range"}), Kind::Protocol, 4),
    ] {
        served.server.forget_requests();
        served.server.fault(fault.clone());
        let bucket = open_with(served.server.url(), impatient(), Events::default());
        let error = bucket.get(&object, RANGE).await.expect_err(&fault.to_string());
        let message = shown(&error);
        assert_eq!(error.kind(), kind, "{fault}: {message}");
        assert!(message.contains("bytes 1000..2500001 of object `weights/model.safetensors`"), "{message}");
        if let Some(status) = fault["status"].as_u64() {
            assert!(message.contains(&status.to_string()) && message.contains("opc-request-id"), "{message}");
            assert_eq!(error.request_id().map(str::len), Some(32), "{message}");
        }
        let asked = served.server.count("get");
        assert!(asked >= 1 && asked <= most_requests, "{fault}: {asked} requests");
        served.server.no_faults();
    }
}

#[tokio::test]
async fn a_body_that_stops_is_resumed_at_the_byte_reached_and_never_mixed_with_another_version() {
    let (served, content) = served();
    let bucket = served.open();
    let object = bucket.head(NAME).await.unwrap();
    // The listing may have given no ETag: the first answer's is kept.
    let unversioned = Object { etag: None, ..object.clone() };
    for object in [&object, &unversioned] {
        served.server.forget_requests();
        served.server.fault(json!({"kind": "short_body", "after_bytes": 1_500_000, "count": 1, "operation": "get"}));
        let got = bucket.get(object, 0..3_000_000).await.unwrap();
        assert!(got == content);
        let requests = served.server.requests();
        assert_eq!(requests["requests"][1]["range"], "bytes=1500000-2999999");
        assert_eq!(
            requests["requests"][1]["if_match"].as_str(),
            unversioned.etag.as_deref().or(served_etag(&bucket).await.as_deref())
        );

        served.server.fault(json!([
            {"kind": "short_body", "after_bytes": 1_500_000, "count": 1, "operation": "get"},
            {"kind": "changed_etag", "after": 1, "operation": "get"},
        ]));
        let mut got = Vec::new();
        let error = bucket.get_into(object, 0..3_000_000, &mut |piece| got.extend_from_slice(piece)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed);
        assert!(got == content[..1_500_000], "what was handed over is of one version");
        served.server.no_faults();
    }
}

async fn served_etag(bucket: &flashjob_bucket::Bucket) -> Option<String> {
    bucket.head(NAME).await.unwrap().etag
}

#[tokio::test]
async fn an_object_that_is_replaced_is_changed_also_where_the_listing_gave_no_etag() {
    let (served, content) = served();
    let bucket = served.open();
    let object = bucket.head(NAME).await.unwrap();
    std::fs::write(served.path().join(NAME), &content[1..]).unwrap();
    for object in [&object, &Object { etag: None, ..object.clone() }] {
        for range in [0..10, 0..3_000_000, 2_999_999..3_000_000] {
            let error = bucket.get(object, range).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        }
    }
}

#[tokio::test]
async fn ranges_that_are_not_of_the_object_are_not_asked_for() {
    let (served, content) = served();
    let bucket = served.open();
    let object = bucket.head(NAME).await.unwrap();
    served.server.forget_requests();
    for (start, end) in [(0, 0), (7, 7), (3_000_000, 3_000_000)] {
        assert!(bucket.get(&object, start..end).await.unwrap().is_empty());
    }
    for (start, end) in [(5, 4), (0, 3_000_001), (3_000_001, 3_000_001), (u64::MAX, u64::MAX), (0, u64::MAX)] {
        let error = bucket.get(&object, start..end).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{start}..{end}");
    }
    assert_eq!(served.server.count("get"), 0);
    for (start, end) in [(0, 1), (2_999_999, 3_000_000), (0, 3_000_000)] {
        let got = bucket.get(&object, start..end).await.unwrap();
        assert!(got == content[start as usize..end as usize]);
    }
}

#[tokio::test]
async fn a_server_that_ignores_ranges_may_still_give_a_whole_object() {
    let (served, content) = served();
    let bucket = served.open();
    let object = bucket.head(NAME).await.unwrap();
    served.server.fault(json!({"kind": "ignored_range"}));
    assert!(bucket.get(&object, 0..3_000_000).await.unwrap() == content);
    for range in [0..2_999_999, 1..3_000_000] {
        assert_eq!(bucket.get(&object, range).await.unwrap_err().kind(), ErrorKind::Protocol);
    }
}

#[tokio::test]
async fn a_slow_body_that_moves_is_not_given_up() {
    let (served, content) = served();
    let policy = flashjob_bucket::RetryPolicy { deadline: Duration::from_millis(1), ..patient() };
    let bucket = open_with(served.server.url(), policy, Events::default());
    let object = bucket.head(NAME).await.unwrap();
    // Twice as long as the progress timeout in all, in pieces that each come well within it.
    served.server.fault(json!({"kind": "bandwidth", "bytes_per_second": 3_000_000.0}));
    assert!(bucket.get(&object, 0..3_000_000).await.unwrap() == content);
}

#[tokio::test]
async fn a_server_that_restarts_is_waited_for() {
    let (served, content) = served();
    let Served { server, folder } = served;
    let bucket = open(server.url());
    let object = bucket.head(NAME).await.unwrap();
    let address = server.address().to_string();
    server.fault(json!({"kind": "stall", "after_bytes": 100_000}));
    let got = tokio::spawn(async move { bucket.get(&object, 0..3_000_000).await });
    while server.count("get") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(server);
    let par = json!({ "token": TOKEN }).to_string();
    let _again = BucketServer::start_with(folder.path(), &["--address", &address, "--par", &par]);
    assert!(got.await.unwrap().unwrap() == content);
}

#[tokio::test]
async fn hosts_that_are_not_there_are_unreachable() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for host in [closed.to_string(), "no-such-host.invalid".to_owned()] {
        let url = format!("http://{host}/p/{TOKEN}/n/ns/b/bucket/o/");
        let (seen, events) = Seen::listen();
        let bucket = open_with(&url, impatient(), events);
        for error in [
            bucket.list("").await.unwrap_err(),
            bucket.head("a").await.unwrap_err(),
            bucket.put("a", bytes::Bytes::new()).await.unwrap_err(),
        ] {
            let message = shown(&error);
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{message}");
            assert!(message.contains("network"), "{message}");
        }
        assert!(seen.retries().iter().all(|reason| ["connect", "timeout"].contains(reason)), "{:?}", seen.retries());
    }
}

#[tokio::test]
async fn no_more_connections_are_used_than_allowed_and_all_of_those() {
    let (served, content) = served();
    let policy = flashjob_bucket::RetryPolicy { connections: 4, ..patient() };
    let bucket = open_with(served.server.url(), policy, Events::default());
    let object = bucket.head(NAME).await.unwrap();
    served.server.fault(json!({"kind": "latency", "seconds": 0.02}));
    let reads = (0..32_u64).map(|index| bucket.get(&object, index * 1000..index * 1000 + 1000));
    for (index, got) in futures_util::future::join_all(reads).await.into_iter().enumerate() {
        assert!(got.unwrap() == content[index * 1000..index * 1000 + 1000]);
    }
    assert_eq!(served.server.requests()["most_connections"], Value::from(4 + 1), "and one for this test's questions");
}

#[tokio::test]
async fn one_connection_is_enough_for_every_operation() {
    let (served, _) = served();
    let policy = flashjob_bucket::RetryPolicy { connections: 1, ..patient() };
    let bucket = open_with(served.server.url(), policy, Events::default());
    assert_eq!(bucket.head("missing").await.unwrap_err().kind(), ErrorKind::NotFound);
    let unlisted = served.server.par(json!({"listing": false, "access": "AnyObjectRead"}));
    let policy = flashjob_bucket::RetryPolicy { connections: 1, ..patient() };
    let unlisted = open_with(&unlisted, policy, Events::default());
    assert_eq!(unlisted.list("").await.unwrap_err().kind(), ErrorKind::ListingNotAllowed);
    assert_eq!(unlisted.put("a", bytes::Bytes::new()).await.unwrap_err().kind(), ErrorKind::WritingNotAllowed);
}

#[tokio::test]
async fn being_asked_to_slow_down_is_counted() {
    let (served, _) = served();
    let bucket = served.open();
    let object = bucket.head(NAME).await.unwrap();
    assert_eq!(bucket.throttled(), 0);
    served.server.fault(json!([
        {"kind": "status", "status": 429, "count": 3},
        {"kind": "status", "status": 503, "count": 2, "after": 3},
        {"kind": "status", "status": 500, "count": 1, "after": 5},
    ]));
    bucket.get(&object, 0..10).await.unwrap();
    assert_eq!(bucket.throttled(), 5);
}

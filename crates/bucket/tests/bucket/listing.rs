//! Listings of many pages, whole or not at all.

use flashjob_bucket::{ErrorKind, Object};
use flashjob_event::Events;
use serde_json::{Value, json};

use super::{Served, impatient, open, open_with, shown};

/// 2,500 names that are not in the order in which they are made.
fn many() -> Vec<String> {
    (0..2_500).map(|index| format!("shard-{:04}/{}", index * 7 % 2_500, ["a", "é", "Z", "~"][index % 4])).collect()
}

fn served() -> (Served, Vec<String>) {
    let served = Served::with(&[("file", b"12345")]);
    let mut names = many();
    let objects: Vec<Value> = names.iter().map(|name| json!({ "name": name, "size_bytes": name.len() })).collect();
    served.server.add(Value::from(objects));
    names.push("file".to_owned());
    names.sort();
    (served, names)
}

fn names(objects: &[Object]) -> Vec<&str> {
    objects.iter().map(|object| object.name.as_str()).collect()
}

#[tokio::test]
async fn all_pages_are_followed_in_order() {
    let (served, expected) = served();
    let objects = served.open().list("").await.unwrap();
    assert_eq!(names(&objects), expected);
    assert_eq!(served.server.count("list"), 3);
    for object in &objects {
        let size_bytes = if object.name == "file" { 5 } else { object.name.len() as u64 };
        assert_eq!(object.size_bytes, size_bytes, "{}", object.name);
        assert!(object.etag.is_some() && object.md5.is_some() && object.modified.is_some(), "{object:?}");
    }
}

#[tokio::test]
async fn a_listing_agrees_with_a_head_of_each() {
    let served = Served::with(&[("a", b"one"), ("dir/b", b""), ("dir/c", &super::noise(70_000))]);
    let bucket = served.open();
    for listed in bucket.list("").await.unwrap() {
        let looked_up = bucket.head(&listed.name).await.unwrap();
        // A date in a header has seconds.
        assert_eq!(Object { modified: None, ..listed }, Object { modified: None, ..looked_up });
    }
}

#[tokio::test]
async fn a_prefix_narrows_the_listing() {
    let (served, all) = served();
    let bucket = served.open();
    for prefix in ["shard-00", "shard-0001/", "file", "nothing", "shard-0003/é"] {
        let expected: Vec<&str> = all.iter().map(String::as_str).filter(|name| name.starts_with(prefix)).collect();
        assert_eq!(names(&bucket.list(prefix).await.unwrap()), expected, "{prefix}");
    }
}

#[tokio::test]
async fn faults_that_pass_leave_no_trace_in_a_listing() {
    let (served, expected) = served();
    let bucket = served.open();
    for fault in [
        json!({"kind": "half_listing", "after": 1, "count": 2}),
        json!({"kind": "circular_listing", "after": 1, "count": 2}),
        json!({"kind": "latency", "seconds": 30.0, "after": 2, "count": 1}),
        json!({"kind": "status", "status": 503, "count": 2}),
        json!({"kind": "reset", "after_bytes": 5_000, "after": 1, "count": 2}),
        json!({"kind": "short_body", "after_bytes": 5_000, "after": 2, "count": 1}),
        json!({"kind": "stall", "after_bytes": 5_000, "count": 1}),
    ] {
        served.server.fault(fault.clone());
        let objects = bucket.list("").await.unwrap_or_else(|error| panic!("{fault}: {error}"));
        assert_eq!(names(&objects), expected, "{fault}");
        assert_eq!(served.server.admin("GET", "/admin/faults", None), json!([]), "{fault} did not happen");
    }
}

#[tokio::test]
async fn faults_that_stay_are_errors_and_no_part_of_a_listing_is_given() {
    use ErrorKind as Kind;
    let (served, _) = served();
    for (fault, kind) in [
        (json!({"kind": "half_listing", "after": 1}), Kind::Protocol),
        (json!({"kind": "circular_listing", "after": 1}), Kind::Protocol),
        (json!({"kind": "status", "status": 503}), Kind::Throttled),
        (json!({"kind": "status", "status": 401, "after": 2}), Kind::ParNoLongerWorks),
        // Every request is answered so, also the question whether the PAR reads.
        (json!({"kind": "status", "status": 404, "code": "BucketNotFound"}), Kind::ParNoLongerWorks),
        (json!({"kind": "short_body", "after_bytes": 100}), Kind::Unreachable),
        (json!({"kind": "latency", "seconds": 30.0}), Kind::Unreachable),
    ] {
        served.server.fault(fault.clone());
        let bucket = open_with(served.server.url(), impatient(), Events::default());
        let error = bucket.list("").await.expect_err(&fault.to_string());
        assert_eq!(error.kind(), kind, "{fault}: {}", shown(&error));
        served.server.no_faults();
    }
}

#[tokio::test]
async fn the_par_of_one_object_is_looked_up_and_not_listed() {
    let served = Served::with(&[("dir/a b", b"123"), ("dir/c", b"4")]);
    let bucket = open(&served.server.par(json!({ "object": "dir/a b", "access": "ObjectRead" })));
    for prefix in ["", "dir/", "dir/a b"] {
        let objects = bucket.list(prefix).await.unwrap();
        assert_eq!(names(&objects), ["dir/a b"]);
        assert_eq!(bucket.get(&objects[0], 0..3).await.unwrap(), "123");
    }
    assert!(bucket.list("other/").await.unwrap().is_empty());
    assert_eq!(served.server.count("list"), 0);
}

#[tokio::test]
async fn a_prefix_par_is_listed_under_its_prefix() {
    let served = Served::with(&[("dir/a", b"1"), ("dir/sub/b", b"2"), ("other", b"3")]);
    let url = served.server.par(json!({ "prefix": "dir/", "access": "AnyObjectRead" }));
    let error = open(&url).list("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutsidePrefix);
    assert!(error.to_string().contains("behind the `/o/`"), "{error}");
    assert_eq!(names(&open(&url).list("dir/").await.unwrap()), ["dir/a", "dir/sub/b"]);

    // As the service's users write it.
    let written_out = open(&format!("{url}dir/"));
    for (prefix, expected) in [("", &["dir/a", "dir/sub/b"][..]), ("dir/sub/", &["dir/sub/b"]), ("other", &[])] {
        assert_eq!(names(&written_out.list(prefix).await.unwrap()), expected, "{prefix}");
    }
}

#[tokio::test]
async fn an_empty_bucket_is_an_empty_listing() {
    assert!(Served::empty().open().list("").await.unwrap().is_empty());
}

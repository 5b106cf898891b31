//! Names as buckets have them: written, listed, looked up and read as they are.

use std::collections::BTreeMap;

use bytes::Bytes;
use flashjob_bucket::ErrorKind;
use proptest::prelude::*;
use serde_json::json;

use super::{Served, shown};

fn hostile() -> Vec<String> {
    let mut names: Vec<String> = [
        "plain",
        "dir/",
        "dir/file",
        "a//b",
        "/leading",
        "trailing//",
        "//",
        "./x",
        "x/.",
        "dir/../x",
        "../../etc/passwd",
        "...",
        ".hidden",
        "blue",
        "blue/x",
        "blue/x/y",
        "with space",
        " ",
        "+ & # ? % = ; , : @ ! $ ' ( ) *",
        "%2F%2e%2e",
        "100%",
        "back\\slash",
        "\"quoted\"",
        "<html>",
        "tab\tand\u{7f}",
        "ünïcödé/日本語/🦀",
        "e\u{301} and é",
        "u/name/id/7",
        "A",
        "a",
    ]
    .map(str::to_owned)
    .into();
    names.push("c".repeat(255));
    names.push("c".repeat(256));
    names.push(format!("long/{}", "ü".repeat(509)));
    assert_eq!(names.last().map(String::len), Some(1023));
    names
}

#[tokio::test]
async fn hostile_names_go_round() {
    let served = Served::empty();
    let bucket = served.open();
    let mut expected = BTreeMap::new();
    for name in hostile() {
        let content = format!("content of {name}");
        bucket.put(&name, content.clone().into()).await.unwrap_or_else(|error| panic!("{name:?}: {error}"));
        expected.insert(name, content);
    }
    let listed = bucket.list("").await.unwrap();
    assert_eq!(listed.iter().map(|object| &object.name).collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for object in &listed {
        assert_eq!(bucket.head(&object.name).await.unwrap().etag, object.etag, "{}", object.name);
        let content = bucket.get(object, 0..object.size_bytes).await.unwrap();
        assert_eq!(content, expected[&object.name], "{}", object.name);
    }
}

#[tokio::test]
async fn names_that_no_url_can_carry_are_refused_here() {
    let served = Served::empty();
    let bucket = served.open();
    served.server.forget_requests();
    for name in ["", ".", "..", "nul\0", "line\nfeed", "return\r", &"x".repeat(1025)] {
        for error in [bucket.head(name).await.unwrap_err(), bucket.put(name, Bytes::new()).await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{name:?}: {}", shown(&error));
        }
    }
    assert_eq!(served.server.requests()["requests"], json!([]));
}

#[test]
fn any_name_goes_round() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let served = Served::empty();
    let bucket = served.open();
    // Segments that mean something to URLs and file systems, among any others.
    let segment =
        prop_oneof![Just(String::new()), Just(".".into()), Just("..".into()), "[a-c%+ ?#&]{1,3}", "\\PC{1,8}"];
    let name = prop::collection::vec(segment, 1..5).prop_map(|segments| segments.join("/"));
    let name = name.prop_filter("names that URLs can carry", |name| !matches!(name.as_str(), "" | "." | ".."));
    proptest!(ProptestConfig::with_cases(128), |(name in name)| {
        runtime.block_on(async {
            bucket.put(&name, name.clone().into()).await.unwrap();
            let listed = bucket.list(&name).await.unwrap();
            prop_assert_eq!(&listed[0].name, &name);
            prop_assert_eq!(bucket.get(&listed[0], 0..name.len() as u64).await.unwrap(), name);
            Ok(())
        })?;
    });
}

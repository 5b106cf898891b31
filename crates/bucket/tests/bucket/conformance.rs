//! The development bucket server: the official SDK as an independent judge, and its objects in memory.

use std::process::Command;

use flashjob_bucket::Object;
use serde_json::json;
use tempfile::TempDir;

use super::{Served, open};
use crate::support::bucket_server::BucketServer;
use crate::support::venv::venv;

#[test]
fn the_official_sdk_finds_no_deviation() {
    let Some(environment) = venv("oci") else { return };
    let python = environment.join("bin/python");
    let served = Served::with(&[
        ("0123", b"0123456789abcdef"),
        ("sub/a", b"a in sub"),
        ("sub/b c", b"b in sub"),
        ("sub/deep/ü", b"deep down"),
        ("z", b""),
    ]);
    served.server.add(json!([
        {"name": "dir/", "text": ""},
        {"name": "a//b", "text": "two slashes"},
        {"name": "./x", "text": "a dot"},
        {"name": "dir/../x", "text": "two dots"},
        {"name": "+ & # ? %", "text": "signs"},
    ]));
    let pars = json!({
        "all": served.server.url(),
        "prefix": served.server.par(json!({"prefix": "sub/", "access": "AnyObjectReadWrite"})),
        "read": served.server.par(json!({"access": "AnyObjectRead"})),
        "unlisted": served.server.par(json!({"access": "AnyObjectRead", "listing": false})),
        "write": served.server.par(json!({"access": "AnyObjectWrite", "listing": false})),
        "object": served.server.par(json!({"object": "sub/a", "access": "ObjectRead"})),
    });
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bucket/conformance.py"))
        .arg(pars.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("0 deviations"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_keeps_objects_in_memory_has_the_same_versions() {
    let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    std::fs::write(folder.path().join("file"), b"from the disk").unwrap();
    let listing = elsewhere.path().join("objects.json");
    std::fs::write(&listing, r#"[{"name": "pattern", "size_bytes": 600001, "seed": 3}]"#).unwrap();
    let start = |arguments: &[&str]| {
        let listed = ["--objects", listing.to_str().unwrap()];
        BucketServer::start_with(folder.path(), &[&listed[..], arguments].concat())
    };
    let (plain, kept) = (start(&[]), start(&["--in-memory"]));
    let (plain, kept) = (open(plain.url()), open(kept.url()));
    let objects = plain.list("").await.unwrap();
    // Objects of a list are as old as their server.
    let versions = |objects: &[Object]| objects.iter().map(|o| (o.name.clone(), o.etag.clone())).collect::<Vec<_>>();
    assert_eq!((objects.len(), versions(&kept.list("").await.unwrap())), (2, versions(&objects)));
    for object in &objects {
        let bytes = plain.get(object, 0..object.size_bytes).await.unwrap();
        // Whoever has it in memory no longer needs the file.
        let _ = std::fs::remove_file(folder.path().join(&object.name));
        assert_eq!(kept.get(object, 0..object.size_bytes).await.unwrap(), bytes, "{}", object.name);
    }
}

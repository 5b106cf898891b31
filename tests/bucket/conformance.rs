//! The official SDK as an independent judge of the development bucket server.

use std::process::Command;

use serde_json::json;

use super::Served;
use crate::support::venv::venv;

#[test]
fn the_official_sdk_finds_no_deviation() {
    let root = env!("CARGO_MANIFEST_DIR");
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
    let output =
        Command::new(python).arg(format!("{root}/tests/bucket/conformance.py")).arg(pars.to_string()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("0 deviations"), "{said}");
}

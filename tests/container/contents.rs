//! What an image is made of, and that it is the same whenever it is made of the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::docker;
use crate::support::venv::venv;

/// Name and version.
type Crate = (String, String);

/// Every crate of `Cargo.lock` with its checksum; our own has none.
fn locked() -> BTreeMap<Crate, String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let value = |entry: &str, key: &str| {
        let line = entry.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let entries = text.split("[[package]]").skip(1);
    entries.map(|entry| ((value(entry, "name"), value(entry, "version")), value(entry, "checksum"))).collect()
}

/// Crates whose files `binary` names, in messages of panics and in debug information.
fn named_in(binary: &[u8]) -> BTreeSet<Crate> {
    let text = String::from_utf8_lossy(binary);
    let places = text.match_indices("/registry/src/").map(|(at, found)| &text[at + found.len()..]);
    places
        .filter_map(|rest| {
            // Debug information ends names with a zero.
            let folder = rest.split('/').nth(1)?;
            let end = folder.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.+".contains(c));
            let folder = &folder[..end.unwrap_or(folder.len())];
            // `md-5-0.10.6`: a version has dots.
            let is_version = |text: &str| text.split_once('.').is_some_and(|(major, _)| major.parse::<u32>().is_ok());
            let dash = folder.match_indices('-').find(|(at, _)| is_version(&folder[at + 1..]))?;
            Some((folder[..dash.0].to_owned(), folder[dash.0 + 1..].to_owned()))
        })
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[test]
fn the_bill_of_materials_names_what_is_in_the_binary_and_nothing_else() {
    let Some(docker) = docker() else { return };
    let Some(judges) = venv("sbom") else { return };
    let place = TempDir::new().unwrap();
    let (sbom, binary) = (place.path().join("sbom.json"), place.path().join("flashjob"));
    if !docker.build_with_sbom("cpu", "flashjob:sbom-test", env!("CARGO_BIN_EXE_flashjob"), &sbom) {
        return;
    }
    // Judged by CycloneDX's own library, which carries the schema.
    let judge = "import sys\nfrom cyclonedx.schema import SchemaVersion\nfrom cyclonedx.validation.json import JsonStrictValidator\n\
                 print(JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read()) or 'valid')";
    let judged = Command::new(judges.join("bin/python")).args(["-c", judge]).arg(&sbom).output().unwrap();
    let said = String::from_utf8_lossy(&judged.stdout).into_owned();
    assert_eq!(said.trim(), "valid", "{}", String::from_utf8_lossy(&judged.stderr));

    let document: Value = serde_json::from_slice(&std::fs::read(&sbom).unwrap()).unwrap();
    let locked = locked();
    let mut listed = BTreeSet::new();
    for component in document["components"].as_array().unwrap() {
        let found = (text(&component["name"]), text(&component["version"]));
        assert_eq!(locked.get(&found), Some(&text(&component["hashes"][0]["content"])), "{found:?}");
        assert!(!text(&component["licenses"][0]["expression"]).is_empty(), "{found:?}");
        listed.insert(found);
    }
    let names: BTreeSet<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["tokio", "candle-core", "tokenizers", "rustls", "fuser"] {
        assert!(names.contains(name), "{name} is in the binary");
    }
    // For tests, for build scripts, inside the compiler, for GPUs.
    for name in ["proptest", "cc", "serde_derive", "nvml-wrapper"] {
        assert!(locked.keys().any(|(known, _)| known == name) && !names.contains(name), "{name} is not in the binary");
    }
    let named = named_in(&std::fs::read(env!("CARGO_BIN_EXE_flashjob")).unwrap());
    assert!(named.len() > 100, "{} crates are named in the binary", named.len());
    let missing: Vec<_> = named.difference(&listed).collect();
    assert!(missing.is_empty(), "in the binary and not in its bill: {missing:?}");

    // The binary in the image says the same of itself.
    let id = docker.output(&["create", "flashjob:sbom-test"]);
    let id = String::from_utf8_lossy(&id.stdout).trim().to_owned();
    assert!(docker.output(&["cp", &format!("{id}:/flashjob"), &binary.display().to_string()]).status.success());
    docker.output(&["rm", &id]);
    let section = place.path().join("section");
    let dump = format!(".dep-v0={}", section.display());
    assert!(Command::new("objcopy").args(["--dump-section", &dump]).arg(&binary).status().unwrap().success());
    let inflate = "import sys, zlib\nprint(zlib.decompress(open(sys.argv[1], 'rb').read()).decode())";
    let inflated = Command::new("python3").args(["-c", inflate]).arg(&section).output().unwrap();
    let own: Value = serde_json::from_slice(&inflated.stdout).unwrap();
    let (own_crates, others): (Vec<&Value>, Vec<&Value>) =
        own["packages"].as_array().unwrap().iter().partition(|package| package["root"] == true);
    assert!(own_crates.len() == 1 && own_crates[0]["name"] == "flashjob", "{own_crates:?}");
    let others: BTreeSet<Crate> = others.iter().map(|other| (text(&other["name"]), text(&other["version"]))).collect();
    assert_eq!(others, listed);
}

#[test]
fn the_same_binary_becomes_the_same_image() {
    let Some(docker) = docker() else { return };
    let id = |tag: &str| {
        let output = docker.output(&["image", "inspect", "--format={{.Id}}", tag]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    for (target, binary) in
        [("cpu", env!("CARGO_BIN_EXE_flashjob")), ("development", env!("CARGO_BIN_EXE_development-bucket"))]
    {
        let tags = ["one", "another"].map(|word| format!("flashjob-{target}-test:{word}"));
        assert!(tags.iter().all(|tag| docker.build(target, tag, binary)), "{target}");
        let [one, another] = tags.each_ref().map(|tag| id(tag));
        assert!(one.starts_with("sha256:") && one == another, "{target}: {one} and {another}");
    }
}

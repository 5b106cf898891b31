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

/// Every crate of `Cargo.lock` with its checksum; our own have none.
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
    let variables = [("SBOM", sbom.to_str().unwrap())];
    if !docker.build_with("cpu", "flashjob:sbom-test", env!("CARGO_BIN_EXE_flashjob"), &variables) {
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
    // Read by the project that made the format, as scanners do.
    let own = auditable_info::audit_info_from_file(&binary, auditable_info::Limits::default()).unwrap();
    let (own_crates, others): (Vec<_>, Vec<_>) = own.packages.iter().partition(|package| package.root);
    assert!(own_crates.len() == 1 && own_crates[0].name == "flashjob", "{own_crates:?}");
    for other in &others {
        let source = if other.name.starts_with("flashjob-") { "Local" } else { "CratesIo" };
        assert_eq!(format!("{:?}", other.source), source, "{other:?}");
        assert!(locked.contains_key(&(other.name.clone(), other.version.to_string())), "{other:?}");
    }
    let others: BTreeSet<Crate> = others.iter().map(|other| (other.name.clone(), other.version.to_string())).collect();
    assert_eq!(others, listed);
}

/// Those that are put on a base are put on Debian here, with files of a few bytes for CUDA's libraries.
#[test]
fn the_same_binary_and_base_become_the_same_image() {
    let Some(docker) = docker() else { return };
    let Some(base) = super::base_image() else { return };
    let imported = docker.output(&["import", &base.display().to_string(), "flashjob:base-test"]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let inspected = |tag: &str, what: &str| {
        let output = docker.output(&["image", "inspect", &format!("--format={{{{{what}}}}}"), tag]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let place = TempDir::new().unwrap();
    let libraries = place.path().join("libraries");
    std::fs::create_dir(&libraries).unwrap();
    let (libraries_shown, sbom) = (libraries.display().to_string(), place.path().join("sbom").display().to_string());
    let variables = [
        ("CUDA_BASE", "flashjob:base-test"),
        ("VLLM_BASE", "flashjob:base-test"),
        ("SGLANG_BASE", "flashjob:base-test"),
        ("LIBRARIES", libraries_shown.as_str()),
        ("SBOM", sbom.as_str()),
    ];
    let bucket = super::development_bucket();
    let (flashjob, bucket) = (env!("CARGO_BIN_EXE_flashjob"), bucket.as_str());
    for (target, binary, layers) in [
        ("cpu", flashjob, "1"),
        ("development", bucket, "1"),
        ("vllm", flashjob, "2"),
        ("sglang", flashjob, "2"),
        ("cuda", flashjob, "3"),
    ] {
        let tags = ["one", "another"].map(|word| format!("flashjob-{target}-test:{word}"));
        let ids = tags.each_ref().map(|tag| {
            // Made anew each time, as a download makes them.
            for library in ["libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libnccl.so.2"] {
                std::fs::write(libraries.join(library), library).unwrap();
            }
            assert!(docker.build_with(target, tag, binary, &variables), "{target}");
            inspected(tag, ".Id")
        });
        assert!(ids[0].starts_with("sha256:") && ids[0] == ids[1], "{target}: {ids:?}");
        assert_eq!(inspected(&tags[0], "len .RootFS.Layers"), layers, "{target}");
        let title = inspected(&tags[0], "index .Config.Labels \"org.opencontainers.image.title\"");
        assert_eq!(title, if target == "development" { "development-bucket" } else { "flashjob" });
    }
    // What was written anew is an image that runs, on the base's own files.
    let run = docker.output(&["run", "--rm", "--network=host", "flashjob-vllm-test:one", "--version"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let listing =
        ["run", "--rm", "--network=host", "--entrypoint=/bin/ls", "flashjob-cuda-test:one", "/usr/local/lib/flashjob"];
    let listed = docker.output(&listing);
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout).lines().count(),
        4,
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
}

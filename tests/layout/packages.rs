//! Manifests: each dependency is used, tools are for tests, and the workspace's lints hold everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::imports::crates;
use super::{root, sources};

/// Folders of a package whose code has its dependencies, and those whose code has its development dependencies, too.
const CODE: [&str; 2] = ["src", "fuzz_targets"];
const TESTS: [&str; 3] = ["tests", "benches", "examples"];

/// Crates whose library has another name than their package.
const OTHER_NAMES: [(&str, &str); 1] = [("md-5", "md5")];

/// The folders of all packages below the root's own, from the project's root and with a `/` at the end.
pub fn folders() -> Vec<String> {
    let mut found = Vec::new();
    for parent in ["crates", "tools"] {
        for entry in fs::read_dir(root().join(parent)).unwrap() {
            found.push(format!("{parent}/{}/", entry.unwrap().file_name().to_str().unwrap()));
        }
    }
    found.sort();
    found
}

/// The names of dependencies by the section that declares them, `dependencies` and the like.
fn declared(manifest: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut found = BTreeMap::<&str, Vec<&str>>::new();
    let mut section = "";
    for line in manifest.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((name, _)) = line.split_once(['.', ' ', '=']) {
            found.entry(section).or_default().push(name);
        }
    }
    found
}

/// Dependencies of `manifest` that no code of theirs names: (section, name).
fn unused(manifest: &str, code: &[&str], tests: &[&str], build: &[&str]) -> Vec<(String, String)> {
    let named = |texts: &[&[&str]]| -> BTreeSet<String> {
        texts.iter().copied().flatten().flat_map(|text| crates(text)).collect()
    };
    let declared = declared(manifest);
    let mut found = Vec::new();
    for (section, named) in [
        ("dependencies", named(&[code])),
        ("dev-dependencies", named(&[code, tests])),
        ("build-dependencies", named(&[build])),
    ] {
        for name in declared.get(section).into_iter().flatten() {
            let other = OTHER_NAMES.iter().find(|(package, _)| package == name);
            let library = other.map_or_else(|| name.replace('-', "_"), |(_, library)| (*library).to_owned());
            if !named.contains(&library) {
                found.push((section.to_owned(), (*name).to_owned()));
            }
        }
    }
    found
}

/// Tools that are more than development dependencies of `manifest`.
fn tools_in_use<'a>(manifest: &'a str, tools: &[String]) -> Vec<&'a str> {
    let declared = declared(manifest);
    let sections = ["dependencies", "build-dependencies"].into_iter().filter_map(|section| declared.get(section));
    sections.flatten().copied().filter(|name| tools.iter().any(|tool| tool == name)).collect()
}

fn manifest(folder: &str) -> String {
    fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap()
}

#[test]
fn each_dependency_is_used() {
    let mut found = Vec::new();
    for folder in folders().iter().map(String::as_str).chain(["", "fuzz/"]) {
        let texts = |names: &[&str]| -> Vec<String> {
            names.iter().flat_map(|name| sources(&format!("{folder}{name}")).into_values()).collect()
        };
        let (code, tests) = (texts(&CODE), texts(&TESTS));
        let build = fs::read_to_string(root().join(folder).join("build.rs")).unwrap_or_default();
        fn borrowed(texts: &[String]) -> Vec<&str> {
            texts.iter().map(String::as_str).collect()
        }
        let unused = unused(&manifest(folder), &borrowed(&code), &borrowed(&tests), &[&build]);
        found.extend(unused.into_iter().map(|(section, name)| format!("{folder}Cargo.toml, {section}: {name}")));
    }
    assert!(found.is_empty(), "declared, and used by nothing there:\n{}", found.join("\n"));
}

#[test]
fn tools_are_for_tests() {
    let tools: Vec<String> = folders().into_iter().filter(|folder| folder.starts_with("tools/")).collect();
    let name = |folder: &String| {
        let text = manifest(folder);
        let line = text.lines().find_map(|line| line.strip_prefix("name = ")).unwrap();
        line.trim_matches('"').to_owned()
    };
    let names: Vec<String> = tools.iter().map(name).collect();
    assert!(names.contains(&"development-bucket".to_owned()), "{names:?}");
    for folder in folders().iter().map(String::as_str).filter(|folder| !folder.starts_with("tools/")).chain([""]) {
        let text = manifest(folder);
        let found = tools_in_use(&text, &names);
        assert!(found.is_empty(), "{folder}Cargo.toml has {found:?} for more than tests");
    }
    let planted = "[dependencies]\ndevelopment-bucket.workspace = true\n[dev-dependencies]\nflashjob-test-support = { path = \"\" }";
    assert_eq!(tools_in_use(planted, &names), ["development-bucket"]);
}

#[test]
fn the_workspace_s_lints_hold_in_each_package() {
    for folder in folders().iter().map(String::as_str).chain([""]) {
        assert!(manifest(folder).contains("[lints]\nworkspace = true\n"), "{folder}Cargo.toml");
    }
}

#[test]
fn a_planted_dependency_is_caught() {
    let manifest = "[package]\nname = \"p\"\n[dependencies]\nserde.workspace = true\ntime.workspace = true\nmd-5 = \"0.10\"\n# url\nflashjob-model.workspace = true\n\
        [build-dependencies]\ncc = { version = \"1\" }\n[dev-dependencies]\nrand.workspace = true\nproptest.workspace = true\n";
    let code = "//! flashjob_model::Model\nuse serde::Serialize; use std::time::Duration; use std::{time::Instant}; fn f() { md5::Md5::new(); let flashjob_model = \"flashjob_model::\"; }";
    let tests = "use rand as random;";
    let found = unused(manifest, &[code], &[tests], &["fn main() { cc::Build::new() }"]);
    let pairs: Vec<(&str, &str)> = found.iter().map(|(section, name)| (section.as_str(), name.as_str())).collect();
    assert_eq!(pairs, [("dependencies", "time"), ("dependencies", "flashjob-model"), ("dev-dependencies", "proptest")]);
    assert!(
        unused(
            manifest,
            &["use ::time::Date; use serde as s; use md5 as m; use flashjob_model as m; use proptest::x;"],
            &[tests],
            &["cc::x"]
        )
        .is_empty()
    );
}

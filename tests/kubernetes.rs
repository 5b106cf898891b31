//! Manifests against Kubernetes' own schemas, and against the rules that the schemas miss.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::skip;

fn manifests() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect()
}

#[test]
fn manifests_are_valid() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/venv");
    let environment = Command::new(script).arg("kubernetes").output().unwrap();
    if !environment.status.success() {
        return skip(&format!("no kubernetes-validate: {}", String::from_utf8_lossy(&environment.stderr)));
    }
    let program = format!("{}/bin/kubernetes-validate", String::from_utf8_lossy(&environment.stdout).trim());
    let manifests = manifests();
    assert!(!manifests.is_empty());
    let output = Command::new(&program).arg("--strict").args(&manifests).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");

    // The checker itself finds what is wrong.
    let wrong = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let text = std::fs::read_to_string(&manifests[0]).unwrap();
    assert!(text.contains("backoffLimit: 3"), "{text}");
    std::fs::write(wrong.path(), text.replace("backoffLimit: 3", "backoffLimits: 3")).unwrap();
    assert!(!Command::new(&program).arg("--strict").arg(wrong.path()).status().unwrap().success());
}

#[test]
fn exit_codes_in_the_failure_policy_are_ours_and_each_has_one_meaning() {
    for path in manifests() {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut codes: Vec<u8> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("values: [")?.strip_suffix(']'))
            .flat_map(|list| list.split(", ").map(|code| code.parse::<u8>().unwrap()))
            .collect();
        codes.sort_unstable();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 130, 143], "{}", path.display());
    }
}

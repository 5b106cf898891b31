//! The script that asks a machine with a GPU everything, run to its end on the stand-in.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Stands in for a program that measures vLLM: it writes a line for each workload that it is asked for.
const VLLM: &str = r#"#!/bin/bash
mkdir -p "$1"
echo '{"event": "ready"}' > "$1/vllm.jsonl"
[ -n "$LIMIT" ] && [ -e "${2#--model=}/config.json" ] || exit 1
names=${3#--only=}
for name in ${names//,/ }; do
    echo "{\"workload\": \"$name\", \"output_tokens_per_second\": 50.0, \"scale\": \"${4#--scale=}\"}" >> "$1/vllm.jsonl"
done
"#;

fn session(folder: &Path, more: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::new(root.join("scripts/gpu-session"))
        .args(["--quick", "--binary", env!("CARGO_BIN_EXE_flashjob"), "--results"])
        .arg(folder.join("results"))
        .arg("--weights")
        .arg(folder.join("weights"))
        .args(more)
        .env("STAND_IN_DEVICES", "1")
        // Steps of a size that the stand-in computes in a moment.
        .env("MAX_NUM_BATCHED_TOKENS", "256")
        .output()
        .unwrap()
}

fn answers(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("results/session.json")).unwrap()).unwrap()
}

#[test]
fn a_session_with_a_gpu_asks_everything_and_what_is_missing_later() {
    let folder = tempfile::tempdir().unwrap();
    let vllm = folder.path().join("measure-vllm");
    std::fs::write(&vllm, VLLM).unwrap();
    std::fs::set_permissions(&vllm, std::fs::Permissions::from_mode(0o755)).unwrap();

    // Nothing fits into no time: everything is left out, and said to be.
    let ran =
        session(folder.path(), &["--budget-seconds=0", "--only=profile,128-128-256", "--model=tests/golden/llama-gqa"]);
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("left out: profile: 5 s are estimated for it, and 0 s of the budget are left"), "{said}");

    // The first call answers some of it, and says why there is no vLLM.
    let some = "--only=profile,128-128-256,vllm-256";
    let ran = session(folder.path(), &["--budget-seconds=300", some]);
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("left out: vllm-256: --vllm names no program"), "{said}");
    let first = answers(folder.path());
    let steps = first["profile"]["answer"]["steps"].as_array().unwrap();
    assert!(steps.len() == 3 && steps[0]["replayed"] == true, "{first}");
    let row = &first["128-128-256"]["answer"];
    assert_eq!((&row["device"], &row["prompts"], &row["sequences"]), (&"cuda".into(), &8.into(), &4.into()));

    // The second one asks for the rest alone.
    let ran = session(folder.path(), &["--budget-seconds=600", "--vllm", vllm.to_str().unwrap()]);
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}");
    let all = answers(folder.path());
    assert_eq!((&all["profile"], &all["128-128-256"]), (&first["profile"], &first["128-128-256"]));
    assert_eq!(all["left_out"], serde_json::json!({}), "{said}");
    let numbers = all["numbers"]["answer"]["numbers"].as_array().unwrap();
    assert!(numbers.len() == 6 && numbers.iter().all(|row| row["agrees"] == true), "{said}");
    for name in ["128-128-64", "128-128-1024", "2048-128-256", "sampled-256", "uneven-256", "context-30000"] {
        assert!(all[name]["answer"]["output_tokens_per_second"].as_f64().unwrap() > 0.0, "{name}: {said}");
        assert!(said.lines().any(|line| line.starts_with(name)), "{name}: {said}");
    }
    // vLLM stands beside the same work, with as many prompts.
    assert_eq!(all["vllm-1024"]["answer"][0]["scale"], "2");
    let row = said.lines().find(|line| line.starts_with("128-128-256 ")).unwrap();
    assert!(row.contains(" 50 "), "{row}");
}

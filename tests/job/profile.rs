//! `flashjob profile`: times of steps and of their operations, on the CPU.

use std::path::Path;

use serde_json::Value;

use super::tiny_model;
use crate::support::Flashjob as _;
use crate::support::process::{Finished, Process};

fn profile(output: &Path, more: &[&str]) -> Finished {
    Process::flashjob()
        .args(["profile", "--device=cpu", "--dtype=float32", "--output"])
        .args([output])
        .args(["--model".as_ref(), tiny_model().as_os_str()])
        .args(more)
        .run()
}

#[test]
fn steps_and_their_operations_have_times_beside_the_machine_s_limits() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("profile.json");
    let finished = profile(&output, &["--batch-sizes=1,3", "--context-len=20", "--prompt-lens=16"]).expect_code(0);
    let profile: Value = serde_json::from_slice(&std::fs::read(&output).unwrap()).unwrap();
    let limits = &profile["engine"]["limits"];
    assert!(limits["flops_per_second"].as_f64().unwrap() > 0.0, "{profile}");
    let steps = profile["steps"].as_array().unwrap();
    let sizes: Vec<[u64; 3]> = steps
        .iter()
        .map(|step| ["sequences", "new_tokens", "context"].map(|name| step[name].as_u64().unwrap()))
        .collect();
    assert_eq!((sizes.len(), &sizes[..2], sizes[2][1..].to_vec()), (3, &[[1, 1, 20], [3, 1, 20]][..], vec![16, 0]));
    for step in steps {
        let number = |name: &str| step[name].as_f64().unwrap_or_else(|| panic!("{name}: {step}"));
        assert!(number("seconds") > 0.0 && number("serial_limit_seconds") >= number("limit_seconds") * 0.999);
        let operations = step["operations"].as_array().unwrap();
        let calls = |name: &str| operations.iter().find(|op| op["operation"] == name).map(|op| op["calls"].as_u64());
        // Two layers, each with two norms, and one norm before the head.
        assert_eq!((calls("qkv"), calls("norm"), calls("head")), (Some(Some(2)), Some(Some(5)), Some(Some(1))));
        assert_eq!((calls("sampling"), calls("collective")), (Some(Some(1)), None), "{step}");
        // Rows without logits leave the last layer behind, which a decode step has none of.
        assert_eq!(calls("gather_rows").is_some(), step["new_tokens"] == 16, "{step}");
        for operation in operations {
            let number = |name: &str| operation[name].as_f64().unwrap_or_else(|| panic!("{name}: {operation}"));
            assert!(number("seconds") > 0.0 && number("limit_seconds") > 0.0 && number("bytes") > 0.0, "{operation}");
        }
        let timed: f64 = operations.iter().map(|operation| operation["seconds"].as_f64().unwrap()).sum();
        assert!((timed + number("gaps_seconds") - number("seconds")).abs() < 1e-9, "{step}");
    }
    // 2 · 3 rows · 64 · 192 for q, k and v of 64, 64 and 64 entries, in two layers.
    let qkv = &steps[1]["operations"].as_array().unwrap().iter().find(|op| op["operation"] == "qkv").unwrap()["flops"];
    assert_eq!(qkv.as_f64().unwrap(), 2.0 * 3.0 * 64.0 * QKV_WIDTH * 2.0);
    assert!(finished.stdout.contains("decode, 3 sequences, 1 new tokens after 20 each"), "{}", finished.stdout);
    assert!(finished.stdout.contains("bound by") && finished.stdout.contains("gaps"), "{}", finished.stdout);
}

/// Entries of q, k and v of the tiny model: 4 heads, and 2 of keys and values, of 16 entries each.
const QKV_WIDTH: f64 = 128.0;

#[test]
fn a_size_that_there_is_no_room_for_is_left_out_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("profile.json");
    let words = ["--batch-sizes=1,2", "--context-len=4", "--prompt-lens=", "--max-num-seqs=1"];
    let finished = profile(&output, &words).expect_code(0);
    let profile: Value = serde_json::from_slice(&std::fs::read(&output).unwrap()).unwrap();
    assert_eq!((profile["steps"].as_array().unwrap().len(), &profile["skipped"][0]["sequences"]), (1, &2.into()));
    let reason = "it needs 2 max-num-seqs, and there are 1";
    assert_eq!(profile["skipped"][0]["reason"], reason);
    assert!(finished.stdout.contains(reason), "{}", finished.stdout);
}

#[test]
fn sizes_that_are_none_end_it_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("profile.json");
    let finished = profile(&output, &["--batch-sizes=1,x", "--context-len=-1"]).expect_code(2);
    for sentence in ["--batch-sizes has `x`", "--context-len is `-1`"] {
        assert!(finished.stderr.contains(sentence), "{sentence}: {}", finished.stderr);
    }
    assert!(!output.exists());
}

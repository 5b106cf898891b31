//! `scripts/estimate` beside what was measured on an H100, as docs/gpu.md has it.

use std::process::Command;

use flashjob_test_support::process::installed;
use flashjob_test_support::project;
use serde_json::Value;

/// Share by which an estimate may be off.
const TOLERANCE: f64 = 0.15;

/// Estimates for an H100, by number of sequences.
fn estimates(arguments: &[&str]) -> Option<Vec<Value>> {
    let python = installed("python3", "python3")?;
    let ran =
        Command::new(python).arg(project().join("scripts/estimate")).args(arguments).arg("--json").output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let lines = String::from_utf8(ran.stdout).unwrap();
    let all = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    Some(all.filter(|line| line["gpu"] == "H100").collect())
}

fn assert_near(estimated: f64, measured: f64, what: &str) {
    let ratio = estimated / measured;
    assert!((ratio - 1.0).abs() <= TOLERANCE, "{what}: {estimated} is estimated where {measured} was measured");
}

#[test]
fn the_estimate_agrees_with_the_table_that_was_measured_on_an_h100() {
    let Some(estimates) = estimates(&[]) else { return };
    let page = std::fs::read_to_string(project().join("docs/gpu.md")).unwrap();
    let head = "| Sequences | Output tokens/s |";
    let rows = page.lines().skip_while(|line| !line.starts_with(head)).skip(2).take_while(|line| line.starts_with('|'));
    let mut compared = 0;
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (batch, measured): (u64, f64) = (cells[1].parse().unwrap(), cells[2].parse().unwrap());
        let line = estimates.iter().find(|line| line["batch"] == batch).unwrap_or_else(|| panic!("{row}"));
        assert_near(line["output_tokens_per_second"].as_f64().unwrap(), measured, row);
        compared += 1;
    }
    assert!(compared >= 4, "the table of docs/gpu.md is not found");
}

#[test]
fn a_token_after_a_long_prompt_takes_as_long_as_was_measured() {
    // docs/gpu.md: "After a prompt of 4000 tokens a token takes 6.8 ms, after one of 30,000 tokens 9.1 ms".
    for (prompt, milliseconds) in [("4000", 6.8), ("30000", 9.1)] {
        let Some(estimates) = estimates(&["--input-len", prompt, "--output-len", "8"]) else { return };
        let step = estimates[0]["step_seconds"].as_f64().unwrap();
        assert_near(step * 1e3, milliseconds, prompt);
    }
}

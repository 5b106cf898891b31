//! Datasets that have lost their line feeds, or grow when they are read.

use std::fs::File;
use std::io::{BufWriter, Write};

use serde_json::json;
use tempfile::TempDir;

use super::memory::run_within_limit;
use crate::job::{job_without_model, result, tiny_model};

/// A text of many MiB, written without being held.
fn repeated(file: &mut dyn Write, beginning: &str, pattern: &str, bytes: usize, end: &str) {
    let piece = pattern.repeat(4096);
    write!(file, "{beginning}").unwrap();
    for _ in 0..bytes.div_ceil(piece.len()) {
        write!(file, "{piece}").unwrap();
    }
    write!(file, "{end}").unwrap();
}

const MIB: usize = 1 << 20;

/// Content of a line or entry, and the reason for which it is refused.
type Case = (&'static str, fn(&mut dyn Write), &'static str);

const LINES: [Case; 10] = [
    ("a prompt of 60 MiB", |file| repeated(file, "{\"prompt\": \"", "word ", 60 * MIB, "\"}"), "can hold; shorten it"),
    ("a prompt of 100 KiB", |file| repeated(file, "{\"prompt\": \"", "word ", MIB / 10, "\"}"), "can hold; shorten it"),
    (
        "lost line feeds",
        |file| repeated(file, "", "{\"prompt\": \"a\"} ", 100 * MIB, ""),
        "nothing above 64 MiB is read",
    ),
    ("numbers", |file| repeated(file, "{\"prompt\": [0", ",0", 60 * MIB, "]}"), "more than 1000000 values"),
    ("empty lists", |file| repeated(file, "{\"a\": [[]", ",[]", 60 * MIB, "]}"), "more than 1000000 values"),
    ("nested 10,000 deep", |file| repeated(file, "", "[", 10_000, ""), "recursion limit"),
    (
        "arguments that are numbers",
        |file| {
            let beginning = r#"{"messages":[{"role":"assistant","tool_calls":[{"function":{"arguments":"[0"#;
            repeated(file, beginning, ",0", 60 * MIB, "]\"}}]}]}");
        },
        "more than 1000000 values",
    ),
    (
        "escapes",
        |file| repeated(file, "{\"unknown\": \"", "\\u0001", 60 * MIB, "\", \"prompt\": 1}"),
        "its fields that are copied to the answer have 10485769 bytes, most of them in `unknown`; up to 65536 are kept",
    ),
    (
        "a name of a MiB",
        |file| repeated(file, "{\"custom_id\": \"", "x", MIB, "\", \"url\": \"/v1/completions\"}"),
        "`custom_id` has 1048576 bytes; up to 1024 are kept",
    ),
    (
        "a label of a MiB",
        |file| repeated(file, "{\"prompt\": \"a\", \"id\": \"", "x", MIB, "\"}"),
        "`id` has 1048576 bytes; up to 1024 are kept",
    ),
];

const ENTRIES: [Case; 3] = [
    (
        "a turn of 60 MiB",
        |file| {
            let beginning = r#"{"conversations":[{"from":"gpt","value":"a"},{"from":"human","value":""#;
            repeated(file, beginning, "word ", 60 * MIB, "\"},{\"from\":\"gpt\",\"value\":\"b\"}]}");
        },
        "can hold; shorten it",
    ),
    (
        "a reply of 60 MiB",
        |file| {
            let beginning = r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":""#;
            repeated(file, beginning, "word ", 60 * MIB, "\"}]}");
        },
        "can hold; shorten it",
    ),
    (
        "an entry without an end",
        |file| repeated(file, "", "{\"a\": [1, ", 100 * MIB, ""),
        "nothing above 64 MiB is read",
    ),
];

/// A file that `write` fills.
fn file_of(folder: &TempDir, write: impl FnOnce(&mut dyn Write)) -> String {
    let path = folder.path().join("dataset");
    let mut file = BufWriter::new(File::create(&path).unwrap());
    write(&mut file);
    file.flush().unwrap();
    path.display().to_string()
}

/// Runs a job on it and expects `code`; what it said is given.
#[track_caller]
fn run(case: &str, dataset: &str, path: &str, skip: bool, code: i32) -> (String, TempDir) {
    let results = TempDir::new().unwrap();
    let job = job_without_model(&results)
        .args(["--model".into(), tiny_model()])
        .args(["--dataset", dataset, "--dataset-path", path])
        // Of an entry that says nothing else, as many as its reply has.
        .args((dataset == "jsonl").then_some("--output-len=4"))
        .args(["--on-bad-input", if skip { "skip" } else { "fail" }]);
    let finished = run_within_limit(job);
    assert_eq!(finished.code(), Some(code), "{case}: {finished}");
    let longest = finished.stderr.lines().map(str::len).max().unwrap_or(0);
    assert!(longest < 4096, "{case}: a line of {longest} bytes");
    (finished.stderr, results)
}

#[test]
fn a_line_is_refused_by_its_length_and_others_are_answered() {
    let folder = TempDir::new().unwrap();
    for (case, write, reason) in LINES {
        let path = file_of(&folder, |file| {
            write(file);
            write!(file, "\n{{\"prompt\": \"a\"}}\n").unwrap();
        });
        let (said, _) = run(case, "jsonl", &path, false, 2);
        assert!(said.contains(reason) && said.contains("line 1"), "{case}: {said}");
        let (_, results) = run(case, "jsonl", &path, true, 0);
        let result = result(&results);
        assert_eq!((&result["skipped_inputs"], &result["num_requests"]), (&json!(1), &json!(1)), "{case}");
    }
}

#[test]
fn an_entry_is_refused_by_its_length() {
    let folder = TempDir::new().unwrap();
    let good = r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#;
    for (case, write, reason) in ENTRIES {
        let path = file_of(&folder, |file| {
            write!(file, "[{good},").unwrap();
            write(file);
            write!(file, ",{good}]").unwrap();
        });
        let (said, _) = run(case, "sharegpt", &path, false, 2);
        assert!(said.contains(reason) && said.contains("entry 2"), "{case}: {said}");
    }
}

#[test]
fn a_file_that_is_no_dataset_is_given_up() {
    let folder = TempDir::new().unwrap();
    let path = file_of(&folder, |file| repeated(file, "", "1\n", 3 * MIB, ""));
    let (said, _) = run("numbers", "jsonl", &path, true, 2);
    assert!(said.contains("more than 1000000 lines or entries up to line 1000001 are no prompts"), "{said}");
}

//! Files of tokenizers that are damaged or made to do harm: the model's fault ends with 4, a line's fault with that line.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{answered, copy_of_tiny_model, expect_none};

/// A file's name for people, its content, the exit code, and a part of the error or of what is said of the first line.
type Case = (&'static str, Vec<u8>, i32, &'static str);

/// The tiny model's tokenizer with one section replaced.
fn with(section: &str, value: Value) -> Vec<u8> {
    let text = std::fs::read(crate::job::tiny_model().join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_slice(&text).unwrap();
    *tokenizer.pointer_mut(section).unwrap() = value;
    serde_json::to_vec(&tokenizer).unwrap()
}

fn charsmap(bytes: &[u8]) -> Vec<u8> {
    let encoded = BASE64_STANDARD.encode(bytes);
    with("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": encoded}))
}

fn padding(strategy: Value, multiple: u64) -> Vec<u8> {
    let padding = json!({"strategy": strategy, "direction": "Right", "pad_to_multiple_of": multiple, "pad_id": u32::MAX,
        "pad_type_id": 0, "pad_token": "x"});
    with("/padding", padding)
}

fn truncation(max_length: u64, stride: u64) -> Vec<u8> {
    let truncation = json!({"max_length": max_length, "stride": stride, "strategy": "OnlySecond", "direction": "Left"});
    with("/truncation", truncation)
}

fn split(pattern: &str) -> Vec<u8> {
    let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    with("/pre_tokenizer", split)
}

fn cases() -> Vec<Case> {
    let all = |length: u32, bytes: Vec<u8>| [&length.to_le_bytes()[..], &bytes].concat();
    let unusable = "the tokenizers library gives up on any text with it";
    let damaged = "the description does not make a tokenizer";
    vec![
        ("padding to all memory", padding(json!({"Fixed": 1_000_000_000_000_000_000_u64}), 8), 0, ""),
        ("padding to a multiple of nothing", padding(json!("BatchLongest"), 0), 0, ""),
        ("padding of another shape", with("/padding", json!([1])), 4, damaged),
        ("truncation to nothing", truncation(0, 5), 0, ""),
        ("truncation by a wide stride", truncation(1, u64::MAX), 0, ""),
        ("truncation of another shape", with("/truncation", json!("all")), 4, damaged),
        ("a charsmap without bytes", charsmap(b""), 4, damaged),
        ("a charsmap of one byte", charsmap(b"\xff"), 4, damaged),
        ("a charsmap shorter than it says", charsmap(&all(u32::MAX, b"abc".to_vec())), 4, "ran out of the memory"),
        ("a charsmap without entries", charsmap(&all(0, b"abc\0".to_vec())), 4, unusable),
        ("a charsmap that points beyond itself", charsmap(&all(4, b"\xff\xff\xff\xffabc\0".to_vec())), 4, unusable),
        ("a charsmap of ones", charsmap(&all(4096, vec![0xff; 4096])), 4, "tokenizer"),
        (
            "a charsmap that is no base64",
            with("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "%"})),
            4,
            damaged,
        ),
        ("a pattern that looks back", split("(a+)+$|(.+)+\\1"), 0, ""),
        ("a pattern that is none", split("("), 4, damaged),
        ("a pattern of repetitions", split("((((a{1000}){1000}){1000}){1000})"), 4, damaged),
        ("a pattern of brackets", split(&("(".repeat(50_000) + &")".repeat(50_000))), 4, damaged),
        ("merges of unknown tokens", with("/model/merges", json!(["zz yy"])), 4, damaged),
        ("merges of another shape", with("/model/merges", json!([["a", "b", "c"]])), 4, damaged),
        ("ids below zero", with("/model/vocab", json!({"a": -1})), 4, damaged),
        ("a vocabulary without tokens", with("/model", json!({"type": "BPE", "vocab": {}, "merges": []})), 0, ""),
        ("a prefix that is long", with("/model/continuing_subword_prefix", json!("x".repeat(1_000_000))), 4, damaged),
        ("a dropout of more than all", with("/model/dropout", json!(5.5)), 4, damaged),
        ("a model of no kind", with("/model", json!({"type": "Nobody"})), 4, damaged),
        ("a version of tomorrow", with("/version", json!("9.9")), 4, "Unknown tokenizer version"),
        ("brackets", [b"{\"model\": ", &[b'['; 1_000_000][..]].concat(), 4, damaged),
        ("half a file", with("/version", json!("1.0"))[..3000].to_vec(), 4, damaged),
        ("no JSON at all", b"\xff\xfe\0".repeat(100), 4, damaged),
    ]
}

fn outcome((name, content, code, said): &Case) -> Option<String> {
    let results = TempDir::new().unwrap();
    let model = copy_of_tiny_model(results.path());
    std::fs::write(model.join("tokenizer.json"), content).unwrap();
    let (finished, result) = answered(&results, &model, &["--on-bad-input=skip"]);
    let error = result["error"].as_str().unwrap_or_default();
    let names_file = code != &4 || error.contains(Path::new(&model).to_str().unwrap());
    let as_expected = result["exit_code"] == *code && error.contains(said) && names_file;
    (finished.code() != Some(*code) || !as_expected).then(|| {
        let beginning: String = error.chars().take(400).collect();
        format!("{name}: {}: {beginning}", finished.status)
    })
}

#[test]
fn a_tokenizer_at_fault_ends_with_4_and_one_with_odd_settings_is_used() {
    let cases = cases();
    assert!(cases.len() >= 15);
    expect_none(&cases, outcome);
}

/// A process that no limit within it stops ends, is started again, and the texts at fault are known.
#[test]
fn a_text_that_ends_the_process_is_the_only_one_that_is_lost() {
    let results = TempDir::new().unwrap();
    let model = copy_of_tiny_model(results.path());
    // Of the one text that has an `a`, more is made than there is memory for.
    let times = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(100_000)});
    let normalizer = json!({"type": "Sequence", "normalizers": [times, times]});
    std::fs::write(model.join("tokenizer.json"), with("/normalizer", normalizer)).unwrap();
    let (finished, result) = answered(&results, &model, &["--on-bad-input=skip", "--apply-chat-template=never"]);
    let finished = finished.expect_code(0);
    let lost = finished.stderr.lines().find(|line| line.contains("line 1 is skipped: tokenizer ")).unwrap();
    assert!(lost.contains("cannot encode a text: its process "), "{lost}");
    // The conversation has no template here.
    assert_eq!(result["skipped_inputs"], 2, "{finished}");
    assert_eq!(result["num_requests"], 1);
}

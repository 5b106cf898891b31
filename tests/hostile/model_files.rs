//! Files of a model, and blueprints, that are larger than such files are, or claim to be.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::memory::run_within_limit;
use crate::job::{job_without_model, result, tiny_model};
use crate::support::Flashjob as _;
use crate::support::process::Process;

/// Takes no room on the disk.
fn sparse(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

fn copy() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(tiny_model()).unwrap().flatten() {
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    (folder, model)
}

fn edit_config(model: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = model.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

/// An index of `files` files with a tensor each, in the place of the weights.
fn index(model: &Path, files: usize) {
    std::fs::remove_file(model.join("model.safetensors")).unwrap();
    let mut file = BufWriter::new(File::create(model.join("model.safetensors.index.json")).unwrap());
    write!(file, "{{\"weight_map\":{{").unwrap();
    for number in 0..files {
        let comma = if number == 0 { "" } else { "," };
        write!(file, "{comma}\"t{number}\":\"model-{number}.safetensors\"").unwrap();
    }
    write!(file, "}}}}").unwrap();
}

/// A GGUF file with one key, whose value is of type `kind` and has the bytes that `value` writes.
fn gguf(model: &Path, kind: u32, value: impl FnOnce(&mut Vec<u8>)) {
    std::fs::remove_file(model.join("config.json")).unwrap();
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(3u64.to_le_bytes());
    bytes.extend(b"key");
    bytes.extend(kind.to_le_bytes());
    value(&mut bytes);
    std::fs::write(model.join("model.gguf"), bytes).unwrap();
}

type Case = (&'static str, fn(&Path), &'static str);

const CASES: [Case; 18] = [
    ("config.json", |model| sparse(&model.join("config.json"), 1 << 30), "1073741824 bytes, and 4194304 are the limit"),
    ("generation_config.json", |model| sparse(&model.join("generation_config.json"), 1 << 30), "are the limit"),
    ("tokenizer_config.json", |model| sparse(&model.join("tokenizer_config.json"), 1 << 30), "are the limit"),
    ("special_tokens_map.json", |model| sparse(&model.join("special_tokens_map.json"), 1 << 30), "are the limit"),
    ("added_tokens.json", |model| sparse(&model.join("added_tokens.json"), 1 << 30), "are the limit"),
    ("chat_template.json", |model| sparse(&model.join("chat_template.json"), 1 << 30), "are the limit"),
    ("chat_template.jinja", |model| sparse(&model.join("chat_template.jinja"), 1 << 30), "are the limit"),
    ("tokenizer.json", |model| sparse(&model.join("tokenizer.json"), 1 << 30), "67108864 are the limit"),
    ("an index of a million files", |model| index(model, 1_000_000), "33554432 are the limit for the index"),
    ("an index of 200,000 files", |model| index(model, 200_000), "it names 200000 files, and 4096 are the limit"),
    ("an index of 4,000 files", |model| index(model, 4_000), "and 3988 more"),
    (
        "headers of 99 MB",
        |model| {
            index(model, 64);
            for number in 0..64 {
                let path = model.join(format!("model-{number}.safetensors"));
                sparse(&path, 99_000_008);
                let mut file = File::options().write(true).open(path).unwrap();
                file.write_all(&99_000_000u64.to_le_bytes()).unwrap();
            }
        },
        "all headers take more than 67108864",
    ),
    (
        "an architecture of a MiB",
        |model| edit_config(model, |config| config["architectures"] = serde_json::json!(["x".repeat(1 << 20)])),
        "architecture xxx",
    ),
    (
        "a million architectures",
        |model| edit_config(model, |config| config["architectures"] = serde_json::json!(vec!["x"; 1_000_000])),
        "architecture",
    ),
    (
        "a size that is a list",
        |model| edit_config(model, |config| config["hidden_size"] = serde_json::json!(vec![0; 1_000_000])),
        "hidden_size",
    ),
    (
        "a list of bytes in GGUF",
        |model| {
            gguf(model, 9, |bytes| {
                bytes.extend(0u32.to_le_bytes());
                bytes.extend((40u64 << 20).to_le_bytes());
                bytes.resize(bytes.len() + (40 << 20), 0);
            });
        },
        "its lists have more than 8388608 elements",
    ),
    (
        "a list of empty texts in GGUF",
        |model| {
            gguf(model, 9, |bytes| {
                bytes.extend(8u32.to_le_bytes());
                bytes.extend((9u64 << 20).to_le_bytes());
                bytes.resize(bytes.len() + (72 << 20), 0);
            });
        },
        "GGUF",
    ),
    (
        "a text of 2 MiB in GGUF",
        |model| {
            gguf(model, 8, |bytes| {
                bytes.extend((2u64 << 20).to_le_bytes());
                bytes.resize(bytes.len() + (2 << 20), b'x');
            });
        },
        "it claims a string of 2097152 bytes, where 1048576 are the limit",
    ),
];

#[test]
fn files_are_refused_by_their_length_and_in_few_words() {
    for (case, damage, message) in CASES {
        let (_folder, model) = copy();
        damage(&model);
        let results = TempDir::new().unwrap();
        let finished = run_within_limit(job_without_model(&results).args(["--model".into(), model]));
        assert_eq!(finished.code(), Some(4), "{case}: {finished}");
        assert!(finished.stderr.contains(message), "{case}: {finished}");
        let longest = finished.stderr.lines().chain(finished.stdout.lines()).map(str::len).max().unwrap_or(0);
        assert!(longest < 4096, "{case}: a line of {longest} bytes");
        let error = result(&results)["error"].as_str().unwrap().len();
        assert!(error <= 2003, "{case}: an error of {error} bytes");
    }
}

#[test]
fn positions_that_are_only_claimed_take_no_memory() {
    let (_folder, model) = copy();
    edit_config(&model, |config| config["max_position_embeddings"] = serde_json::json!(1 << 28));
    let results = TempDir::new().unwrap();
    let job = job_without_model(&results).args(["--model".into(), model]).args([
        "--num-prompts=2",
        "--input-len=4",
        "--output-len=4",
    ]);
    run_within_limit(job).expect_code(0);
}

#[test]
fn blueprints_are_refused_by_their_length_and_in_few_words() {
    let variable = |number| format!(r#"{{"key":"MAX_MODEL_LEN","value":"x{number}"}}"#);
    let variables: Vec<String> = (0..10_000).map(variable).collect();
    let job = |more: &str| format!(r#"{{"recipe_mode":"job",{more}}}"#);
    let cases = [
        ("2 MiB", " ".repeat(2 << 20), "more than 1048576 bytes"),
        ("nested", "[".repeat(500_000), ""),
        ("nested objects", "{\"a\":".repeat(100_000), ""),
        ("a long text", job(&format!(r#""recipe_id":{{"a":"{}"}}"#, "x".repeat(1_000_000))), ""),
        ("wrong variables", job(&format!(r#""recipe_container_env":[{}]"#, variables.join(","))), ""),
        ("a text in the place of a list", job(&format!(r#""recipe_container_env":"{}""#, "x".repeat(1_000_000))), ""),
    ];
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("blueprint.json");
    for (case, text, message) in cases {
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        for arguments in [
            vec!["validate", "--blueprint", &path],
            vec!["render", "--format", "job", "--blueprint", &path],
            vec!["--blueprint", &path],
        ] {
            let finished = run_within_limit(Process::flashjob().args(&arguments));
            assert_eq!(finished.code(), Some(2), "{case}, {arguments:?}: {finished}");
            assert!(finished.stderr.contains(message), "{case}, {arguments:?}: {finished}");
            let said = finished.stderr.len() + finished.stdout.len();
            assert!(said < 128 << 10, "{case}, {arguments:?}: {said} bytes");
        }
    }
}

//! Batches with bad lines, damaged files, damaged answers and disks that are full, as tables: none of them loses an answer.
//!
//! Lines are collected in one batch, each between two good ones. Grammars and schemas belong into [`LINES`], too.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::job::{answers_of, job_without_model, result, tiny_model};
use crate::support::process::{Finished, Process};

/// The bytes of a line.
enum Content {
    Text(&'static str),
    Bytes(&'static [u8]),
    Made(fn() -> String),
}
use Content::{Bytes, Made, Text};

/// Codes that an answer may have: an option is unsupported until an engine has it.
const INVALID: &[&str] = &["invalid_request"];
const TOO_LONG: &[&str] = &["context_length_exceeded"];
const OPTION: &[&str] = &["invalid_request", "unsupported_parameter"];
const LONG_OR_INVALID: &[&str] = &["invalid_request", "context_length_exceeded"];

/// Bad lines: what is wrong, the line, codes that its answer may have, and a part of its message.
const LINES: [(&str, Content, &[&str], &str); 56] = [
    ("not UTF-8", Bytes(b"{\"prompt\": \"\xff\xfe\"}"), INVALID, "it is not JSON"),
    ("UTF-16", Bytes(b"{\0\"\0p\0r\0o\0m\0p\0t\0\"\0:\0\"\0a\0\"\0}\0"), INVALID, "it is not JSON"),
    ("a NUL", Bytes(b"{\"prompt\": \"a\0b\"}"), INVALID, "it is not JSON"),
    ("half a surrogate", Text(r#"{"prompt": "\ud800"}"#), INVALID, "it is not JSON"),
    ("text", Text("a prompt"), INVALID, "it is not JSON"),
    ("a line that is cut", Text(r#"{"prompt": "a"#), INVALID, "it is not JSON"),
    ("two objects", Text(r#"{"prompt": "a"} {"prompt": "b"}"#), INVALID, "it is not JSON"),
    ("a list", Text("[1, 2]"), INVALID, "it is not a JSON object"),
    ("a number", Text("7"), INVALID, "it is not a JSON object"),
    ("null", Text("null"), INVALID, "it is not a JSON object"),
    ("NaN", Text("NaN"), INVALID, "it is not JSON"),
    ("a number that is none", Text(r#"{"prompt": "a", "temperature": 1e999}"#), INVALID, "it is not JSON"),
    ("an empty object", Text("{}"), INVALID, "it has neither"),
    ("null for a prompt", Text(r#"{"prompt": null}"#), INVALID, "it has neither"),
    ("a number for a prompt", Text(r#"{"prompt": 7}"#), INVALID, "`prompt`"),
    ("an object for a prompt", Text(r#"{"prompt": {"text": "a"}}"#), INVALID, "`prompt`"),
    (
        "prompt and messages",
        Text(r#"{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}"#),
        INVALID,
        "both",
    ),
    (
        "100 MB",
        Made(|| format!("{{\"prompt\": \"{}\"}}", "word ".repeat(20_000_000))),
        TOO_LONG,
        "nothing above 64 MiB is read",
    ),
    ("a prompt of a MB", Made(|| format!("{{\"prompt\": \"{}\"}}", "word ".repeat(200_000))), TOO_LONG, "shorten it"),
    ("10,000 messages", Made(|| messages(10_000)), LONG_OR_INVALID, ""),
    (
        "nested 10,000 deep",
        Made(|| format!("{{\"prompt\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000))),
        INVALID,
        "recursion",
    ),
    (
        "2,000,000 values",
        Made(|| format!("{{\"prompt\": [0{}]}}", ",0".repeat(2_000_000))),
        INVALID,
        "more than 1000000 values",
    ),
    (
        "a label of 2 KB",
        Made(|| format!("{{\"prompt\": \"a\", \"id\": \"{}\"}}", "x".repeat(2000))),
        INVALID,
        "`id` has 2000 bytes",
    ),
    ("messages that are none", Text(r#"{"messages": "hello"}"#), INVALID, "`messages`"),
    ("no messages", Text(r#"{"messages": []}"#), INVALID, "`messages`"),
    ("a message that is a text", Text(r#"{"messages": ["hello"]}"#), INVALID, "`messages[0]`"),
    ("a message without a role", Text(r#"{"messages": [{"content": "a"}]}"#), INVALID, "`messages[0]`"),
    ("a role that is a number", Text(r#"{"messages": [{"role": 1, "content": "a"}]}"#), INVALID, "`messages[0]`"),
    ("a message without content", Text(r#"{"messages": [{"role": "user"}]}"#), INVALID, "`messages[0]`"),
    ("a content that is a number", Text(r#"{"messages": [{"role": "user", "content": 7}]}"#), INVALID, "`messages[0]`"),
    (
        "a picture",
        Text(r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]}"#),
        INVALID,
        "`messages[0]`",
    ),
    (
        "arguments that are no JSON",
        Text(r#"{"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]}"#),
        INVALID,
        "`messages[0]`",
    ),
    ("a text for max_tokens", Text(r#"{"prompt": "a", "max_tokens": "7"}"#), INVALID, "`max_tokens`"),
    ("no tokens", Text(r#"{"prompt": "a", "max_tokens": 0}"#), INVALID, "`max_tokens`"),
    ("fewer tokens than none", Text(r#"{"prompt": "a", "max_tokens": -1}"#), INVALID, "`max_tokens`"),
    ("half a token", Text(r#"{"prompt": "a", "max_tokens": 0.5}"#), INVALID, "`max_tokens`"),
    (
        "more tokens than there are",
        Text(r#"{"prompt": "a", "max_tokens": 99999999999}"#),
        LONG_OR_INVALID,
        "`max_tokens`",
    ),
    ("too many tokens", Text(r#"{"prompt": "a", "max_tokens": 2000000000}"#), LONG_OR_INVALID, ""),
    ("a text for temperature", Text(r#"{"prompt": "a", "temperature": "hot"}"#), INVALID, "`temperature`"),
    ("a temperature below 0", Text(r#"{"prompt": "a", "temperature": -0.5}"#), INVALID, "`temperature`"),
    ("a temperature that is infinite", Text(r#"{"prompt": "a", "temperature": 1e300}"#), INVALID, "`temperature`"),
    ("a list for top_p", Text(r#"{"prompt": "a", "top_p": [0.5]}"#), INVALID, "`top_p`"),
    ("top_p above 1", Text(r#"{"prompt": "a", "top_p": 2}"#), INVALID, "`top_p`"),
    ("a fraction for top_k", Text(r#"{"prompt": "a", "top_k": 1.5}"#), INVALID, "`top_k`"),
    ("a text for seed", Text(r#"{"prompt": "a", "seed": "1"}"#), INVALID, "`seed`"),
    ("a number for ignore_eos", Text(r#"{"prompt": "a", "ignore_eos": 1}"#), INVALID, "`ignore_eos`"),
    ("a text for n", Text(r#"{"prompt": "a", "n": "two"}"#), OPTION, "`n`"),
    ("a number for stop", Text(r#"{"prompt": "a", "stop": 7}"#), OPTION, "`stop`"),
    ("a text for logprobs", Text(r#"{"prompt": "a", "logprobs": "all"}"#), OPTION, "`logprobs`"),
    ("a list for logit_bias", Text(r#"{"prompt": "a", "logit_bias": [1]}"#), OPTION, "`logit_bias`"),
    ("a text for response_format", Text(r#"{"prompt": "a", "response_format": "json"}"#), OPTION, "`response_format`"),
    ("a text for tools", Text(r#"{"prompt": "a", "tools": "search"}"#), OPTION, "`tools`"),
    ("a penalty that is a text", Text(r#"{"prompt": "a", "presence_penalty": "much"}"#), OPTION, "`presence_penalty`"),
    (
        "a batch line without a name",
        Text(r#"{"url": "/v1/completions", "body": {"prompt": "a"}}"#),
        INVALID,
        "`custom_id`",
    ),
    (
        "another endpoint",
        Text(r#"{"custom_id": "e", "url": "/v1/embeddings", "body": {"input": "a"}}"#),
        INVALID,
        "`url`",
    ),
    ("a body that is a list", Text(r#"{"custom_id": "b", "url": "/v1/completions", "body": [1]}"#), INVALID, "`body`"),
];

fn messages(count: usize) -> String {
    let message = r#"{"role": "user", "content": "one two three"}"#;
    format!("{{\"messages\": [{}]}}", vec![message; count].join(", "))
}

fn good(number: usize) -> String {
    format!("{{\"id\": \"good {number}\", \"prompt\": \"Word {number} of\", \"max_tokens\": {}}}\n", 3 + number % 4)
}

fn answering(results: &TempDir, dataset: &Path, others: &[&str]) -> Process {
    job_without_model(results)
        .args(["--model".into(), tiny_model()])
        .args(["--dataset=jsonl", "--log-format=text", "--shard-lines=8", "--dataset-path"])
        .args([dataset])
        .args(others)
        .timeout(Duration::from_secs(300))
}

fn parsed(answers: &str) -> Vec<Value> {
    answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A batch of good lines.
fn good_batch(folder: &Path, lines: usize) -> PathBuf {
    let path = folder.join("batch.jsonl");
    fs::write(&path, (0..lines).map(good).collect::<String>()).unwrap();
    path
}

#[test]
fn each_bad_line_is_answered_with_its_error_and_each_good_one_with_a_text() {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dataset = folder.path().join("batch.jsonl");
    let mut file = std::io::BufWriter::new(fs::File::create(&dataset).unwrap());
    for (number, (_, content, ..)) in LINES.iter().enumerate() {
        write!(file, "{}", good(number)).unwrap();
        match content {
            Text(text) => file.write_all(text.as_bytes()).unwrap(),
            Bytes(bytes) => file.write_all(bytes).unwrap(),
            Made(make) => file.write_all(make().as_bytes()).unwrap(),
        }
        file.write_all(b"\n").unwrap();
    }
    // Of two lines with one name the first is answered.
    for _ in 0..2 {
        file.write_all(b"{\"custom_id\": \"twice\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"a\", \"max_tokens\": 2}}\n").unwrap();
    }
    file.flush().unwrap();
    drop(file);
    let finished = answering(&results, &dataset, &[]).run().expect_code(0);
    let longest = finished.stderr.lines().map(str::len).max().unwrap_or(0);
    assert!(longest < 4096, "a line of {longest} bytes in the log");
    let answers = parsed(&answers_of(&results));
    assert_eq!(answers.len(), 2 * LINES.len() + 2);
    let mut wrong = Vec::new();
    for (number, ((case, _, codes, part), pair)) in LINES.iter().zip(answers.chunks(2)).enumerate() {
        let (asked, refused) = (&pair[0], &pair[1]);
        if !(asked["id"] == format!("good {number}")
            && asked["error"].is_null()
            && asked["output_tokens"].as_u64() > Some(0))
        {
            wrong.push(format!("the line before {case}: {asked}"));
        }
        let (code, message) =
            (refused["error"]["code"].as_str(), refused["error"]["message"].as_str().unwrap_or_default());
        let place = format!("line {}: ", 2 * number + 2);
        if !(code.is_some_and(|code| codes.contains(&code)) && message.starts_with(&place) && message.contains(part)) {
            wrong.push(format!("{case}: {refused}"));
        }
        if message.len() > 600 {
            wrong.push(format!("{case}: a message of {} bytes", message.len()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), LINES.len(), wrong.join("\n"));
    let [first, second] = &answers[2 * LINES.len()..] else { panic!("two lines") };
    assert_eq!((&first["custom_id"], first["response"]["status_code"].as_u64()), (&json!("twice"), Some(200)));
    let message = second["error"]["message"].as_str().unwrap_or_default();
    assert!(second["custom_id"] == "twice" && message.contains("its `custom_id` is that of line"), "{second}");
    let batch = &result(&results)["batch"];
    assert_eq!((&batch["is_complete"], batch["completed"].as_u64()), (&json!(true), Some(LINES.len() as u64 + 1)));
}

/// The dataset and the answers of a batch of 40 lines in shards of 8, and results that are half there: two shards, and five answers in the
/// journal of the third one.
fn half_answered() -> (TempDir, PathBuf, String, TempDir) {
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let dataset = good_batch(folder.path(), 40);
    answering(&results, &dataset, &[]).run().expect_code(0);
    let all = answers_of(&results);
    let at = |name: &str| results.path().join("out/outputs").join(name);
    let manifest = fs::read_to_string(at("manifest.jsonl")).unwrap();
    let is_kept =
        |line: &&str| ["\"schema_version\":", "\"shard\":0,", "\"shard\":1,"].iter().any(|part| line.contains(part));
    let kept: Vec<&str> = manifest.lines().filter(is_kept).collect();
    assert_eq!(kept.len(), 3, "{manifest}");
    fs::write(at("manifest.jsonl"), kept.join("\n") + "\n").unwrap();
    let answers = all.lines().enumerate().skip(16).take(5);
    fs::write(
        at("outputs-00002.journal"),
        answers.map(|(entry, answer)| journal_line(entry, answer)).collect::<String>(),
    )
    .unwrap();
    for_everybody(&at("outputs-00002.journal"));
    (2..5).for_each(|shard| fs::remove_file(at(&format!("outputs-{shard:05}.jsonl"))).unwrap());
    (folder, dataset, all, results)
}

/// Lets a job write a file that root has made for it: the job has another user.
fn for_everybody(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
}

/// A line of a journal: the checksum of all that follows it.
fn journal_line(entry: usize, answer: &str) -> String {
    let line = format!("{entry} completed 4 4 {answer}");
    let mut checksum = flate2::Crc::new();
    checksum.update(line.as_bytes());
    format!("{:08x} {line}\n", checksum.sum())
}

type Damage = fn(&Path);

fn cut(path: PathBuf, bytes: i64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len() as i64;
    file.set_len((if bytes < 0 { length + bytes } else { bytes }) as u64).unwrap();
}

fn append(path: PathBuf, content: &[u8]) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(content).unwrap();
}

/// Damage to a folder of answers, its exit code and a part of what is said. Code 0: all lines have an answer in the end, those that
/// were damaged by another run.
const DAMAGED_ANSWERS: [(&str, Damage, i32, &str); 18] = [
    ("a shard that is cut", |outputs| cut(outputs.join("outputs-00000.jsonl"), 50), 0, ""),
    ("a shard that lacks its last byte", |outputs| cut(outputs.join("outputs-00001.jsonl"), -1), 0, ""),
    ("a shard that is empty", |outputs| cut(outputs.join("outputs-00000.jsonl"), 0), 0, ""),
    ("a shard that is longer", |outputs| append(outputs.join("outputs-00000.jsonl"), b"{}\n"), 0, ""),
    ("a shard that is gone", |outputs| fs::remove_file(outputs.join("outputs-00001.jsonl")).unwrap(), 0, ""),
    ("a journal that is cut in a line", |outputs| cut(outputs.join("outputs-00002.journal"), -3), 0, ""),
    ("a journal that is cut in its first line", |outputs| cut(outputs.join("outputs-00002.journal"), 4), 0, ""),
    ("a journal that is empty", |outputs| cut(outputs.join("outputs-00002.journal"), 0), 0, ""),
    ("a journal that is gone", |outputs| fs::remove_file(outputs.join("outputs-00002.journal")).unwrap(), 0, ""),
    (
        "a journal with garbage behind it",
        |outputs| append(outputs.join("outputs-00002.journal"), b"\0\xff garbage"),
        0,
        "",
    ),
    (
        "a journal with an answer that is forged",
        |outputs| append(outputs.join("outputs-00002.journal"), b"00000000 23 completed 1 1 {\"line\":24}\n"),
        0,
        "",
    ),
    ("a manifest that lacks its last byte", |outputs| cut(outputs.join("manifest.jsonl"), -1), 0, ""),
    ("a manifest with garbage behind it", |outputs| append(outputs.join("manifest.jsonl"), b"garbage\n"), 0, ""),
    (
        "half a shard that was being written",
        |outputs| {
            fs::write(outputs.join("outputs-00003.partial"), "half").unwrap();
            for_everybody(&outputs.join("outputs-00003.partial"));
        },
        0,
        "",
    ),
    ("a manifest that is empty", |outputs| cut(outputs.join("manifest.jsonl"), 0), 2, "is no manifest of flashjob"),
    (
        "a manifest of another job",
        |outputs| {
            let path = outputs.join("manifest.jsonl");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains("\"seed\":\"0\""), "{text}");
            fs::write(&path, text.replace("\"seed\":\"0\"", "\"seed\":\"1\"")).unwrap();
        },
        2,
        "seed was `1` and is `0` now",
    ),
    (
        "a manifest of a later version",
        |outputs| {
            let path = outputs.join("manifest.jsonl");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("\"schema_version\":1", "\"schema_version\":9")).unwrap();
        },
        2,
        "it has schema_version 9, and this version reads 1",
    ),
    (
        "a folder in the place of a journal",
        |outputs| {
            fs::remove_file(outputs.join("outputs-00002.journal")).unwrap();
            fs::create_dir(outputs.join("outputs-00002.journal")).unwrap();
        },
        2,
        "outputs-00002.journal` cannot be opened",
    ),
];

/// Things in the place of something else, which no job takes away: exit code, a part of what is said, and how it is mended.
const IN_THE_WAY: [(&str, Damage, &[i32], &str, Damage); 3] = [
    (
        "a folder in the place of a shard",
        |outputs| {
            fs::remove_file(outputs.join("outputs-00000.jsonl")).unwrap();
            fs::create_dir_all(outputs.join("outputs-00000.jsonl/not empty")).unwrap();
        },
        &[1],
        "outputs-00000.jsonl` cannot be written",
        |outputs| fs::remove_dir_all(outputs.join("outputs-00000.jsonl")).unwrap(),
    ),
    (
        "a folder in the place of half a shard",
        |outputs| fs::create_dir(outputs.join("outputs-00003.partial")).unwrap(),
        &[1],
        "outputs-00003.jsonl` cannot be written",
        |outputs| fs::remove_dir(outputs.join("outputs-00003.partial")).unwrap(),
    ),
    (
        "a link in the place of the folder",
        |outputs| {
            let elsewhere = outputs.with_file_name("elsewhere");
            fs::rename(outputs, &elsewhere).unwrap();
            symlink(&elsewhere, outputs).unwrap();
        },
        &[2],
        "outputs` cannot be made",
        |outputs| {
            fs::remove_file(outputs).unwrap();
            fs::rename(outputs.with_file_name("elsewhere"), outputs).unwrap();
        },
    ),
];

/// The files of a folder by name, with their content.
fn files_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap())
        .filter(|file| file.path().is_file())
        .map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Copies results that are half there, so that each case has its own.
fn copy_of(results: &TempDir) -> TempDir {
    let copy = TempDir::new().unwrap();
    let copied = std::process::Command::new("cp").arg("-a").arg(results.path().join("out")).arg(copy.path()).status();
    assert!(copied.unwrap().success());
    copy
}

#[test]
fn damaged_answers_are_given_again_and_the_others_are_kept() {
    let (_folder, dataset, expected, half) = half_answered();
    // As it is, it goes on.
    let results = copy_of(&half);
    answering(&results, &dataset, &[]).run().expect_code(0);
    assert!(answers_of(&results) == expected);
    assert_eq!(result(&results)["batch"]["found"], json!({"on_disk": 21, "in_bucket": 0}));
    super::expect_none(&DAMAGED_ANSWERS, |(case, damage, code, sentence)| {
        let results = copy_of(&half);
        let outputs = results.path().join("out/outputs");
        damage(&outputs);
        let before = files_of(&outputs);
        let finished = answering(&results, &dataset, &[]).run();
        let is_right = match code {
            0 => finished.code() == Some(0) && answers_of(&results) == expected,
            // Nothing of what is there was touched.
            code => {
                finished.code() == Some(*code) && finished.stderr.contains(sentence) && files_of(&outputs) == before
            }
        };
        (!is_right).then(|| format!("{case}: {finished}"))
    });
    super::expect_none(&IN_THE_WAY, |(case, damage, codes, sentence, mend)| {
        let results = copy_of(&half);
        let outputs = results.path().join("out/outputs");
        damage(&outputs);
        let finished = answering(&results, &dataset, &[]).run();
        if !(finished.code().is_some_and(|code| codes.contains(&code)) && finished.stderr.contains(sentence)) {
            return Some(format!("{case}: {finished}"));
        }
        mend(&outputs);
        let again = answering(&results, &dataset, &[]).run();
        (again.code() != Some(0) || answers_of(&results) != expected).then(|| format!("{case}, mended: {again}"))
    });
}

/// A file's name, what makes it, the settings that read it, and what the message names.
type DamagedInput = (&'static str, fn(&Path), &'static [&'static str], &'static str);

/// Files that cannot be read, or not to their end.
const DAMAGED_INPUTS: [DamagedInput; 8] = [
    ("cut.jsonl.gz", |path| fs::write(path, &gzip(1_000)[..900]).unwrap(), &[], "cut.jsonl.gz"),
    ("empty.jsonl.gz", |path| fs::write(path, []).unwrap(), &[], "empty.jsonl.gz"),
    (
        "damaged.jsonl.gz",
        |path| {
            let mut bytes = gzip(1_000);
            let middle = bytes.len() / 2;
            bytes[middle..middle + 40].fill(0xaa);
            fs::write(path, bytes).unwrap();
        },
        &[],
        "damaged.jsonl.gz",
    ),
    (
        "cut.jsonl.zst",
        |path| {
            let bytes = zstd::encode_all((0..1_000).map(good).collect::<String>().as_bytes(), 3).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        },
        &[],
        "cut.jsonl.zst",
    ),
    ("empty.parquet", |path| fs::write(path, []).unwrap(), &[], "empty.parquet"),
    ("empty.jsonl", |path| fs::write(path, []).unwrap(), &[], ""),
    ("folder.jsonl", |path| fs::create_dir(path).unwrap(), &[], "folder.jsonl"),
    (
        "pipe.jsonl",
        |path| {
            std::process::Command::new("mkfifo").arg(path).status().unwrap();
        },
        &[],
        "pipe.jsonl",
    ),
];

fn gzip(lines: usize) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    gzip.write_all((0..lines).map(good).collect::<String>().as_bytes()).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    super::expect_none(&DAMAGED_INPUTS, |(name, make, others, sentence)| {
        let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let path = folder.path().join(name);
        make(&path);
        let finished = answering(&results, &path, others).timeout(Duration::from_secs(60)).run();
        (finished.code() != Some(2) || !finished.stderr.contains(sentence)).then(|| format!("{name}: {finished}"))
    });
    // Whoever may not read a file is told so; root may read all.
    let (folder, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = good_batch(folder.path(), 3);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    let finished = answering(&results, &path, &[]).run();
    assert!(finished.code() == Some(0) || finished.stderr.contains("Permission denied"), "{finished}");
}

/// A table with texts in a column called `text`, three rows.
fn table(path: &Path) {
    let schema = Arc::new(parse_message_type("message rows { required binary text (UTF8); }").unwrap());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let texts = ["one", "two", "three"].map(ByteArray::from);
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn rows_without_a_prompt_are_refused_and_with_its_column_they_have_one() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("table.parquet");
    table(&path);
    let results = TempDir::new().unwrap();
    let finished = answering(&results, &path, &[]).run().expect_code(2);
    assert!(
        finished.stderr.contains("holds no prompt; the first that was skipped is row 1: it has neither"),
        "{finished}"
    );
    let results = TempDir::new().unwrap();
    answering(&results, &path, &["--dataset-columns=prompt=text", "--output-len=2"]).run().expect_code(0);
    assert!(parsed(&answers_of(&results)).iter().all(|answer| answer["output_tokens"] == 2));
    cut(path.clone(), -10);
    let results = TempDir::new().unwrap();
    let finished = answering(&results, &path, &[]).run().expect_code(2);
    assert!(finished.stderr.contains("is no table that can be read"), "{finished}");
}

/// A disk that fills up while the batch runs: the job says so, and once there is room it goes on with what it had.
#[test]
fn a_full_disk_loses_no_answer() {
    let folder = TempDir::new().unwrap();
    let dataset = good_batch(folder.path(), 4000);
    let whole = TempDir::new().unwrap();
    let settings = ["--max-num-seqs=16"];
    answering(&whole, &dataset, &settings).run().expect_code(0);
    let (disk, kept) = (folder.path().join("disk"), folder.path().join("kept"));
    fs::create_dir(&disk).unwrap();
    // The mount is seen in a namespace of its own, and gone with it.
    let job = |code: i32| {
        format!(
            "{} --metrics-port=0 --metrics-linger-seconds=0 --measure-limits=false --model {} --dataset=jsonl --log-format=text \
             --dataset-path {} --shard-lines=8 --max-num-seqs=16 --results-dir {}; code=$?; [ $code = {code} ] || exit $((100 + code))",
            env!("CARGO_BIN_EXE_flashjob"),
            tiny_model().display(),
            dataset.display(),
            disk.join("out").display()
        )
    };
    let disk = disk.display();
    let script = format!(
        "set -u\nmount -t tmpfs -o size=16m none {disk} || exit 90\nhead -c 16300000 /dev/zero > {disk}/filler\n{}\nrm {disk}/filler\n{}\n\
         cp -a {disk}/out {}",
        job(1),
        job(0),
        kept.display()
    );
    let finished = Process::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", &script])
        .env("DEVICE", "cpu")
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .timeout(Duration::from_secs(300))
        .run();
    if mounts_are_refused(&finished) {
        return crate::support::process::skip("this process may not mount a tmpfs");
    }
    let finished = finished.expect_code(0);
    assert!(finished.stderr.contains("No space left on device"), "{finished}");
    assert!(finished.stderr.contains("it goes on with the rest"), "{finished}");
    let results = TempDir::new().unwrap();
    fs::rename(&kept, results.path().join("out")).unwrap();
    assert!(answers_of(&results) == answers_of(&whole), "{finished}");
}

fn mounts_are_refused(finished: &Finished) -> bool {
    finished.code() == Some(90) || finished.stderr.contains("unshare failed")
}

//! Files of datasets, of every kind and with every fault.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use flashjob_dataset::{Content, DatasetFile, Line, find, next_line, open};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;
use tempfile::TempDir;

const LONGEST: usize = 1 << 20;

fn names(path: &Path) -> Vec<String> {
    find(path).unwrap().into_iter().map(|file| file.name).collect()
}

fn one(path: &Path) -> DatasetFile {
    find(path).unwrap().remove(0)
}

fn texts(file: &DatasetFile) -> Result<Vec<String>, String> {
    let Content::Lines(mut lines) = open(file).map_err(|error| error.to_string())? else { panic!("rows") };
    let mut texts = Vec::new();
    while let Some(line) = next_line(&mut *lines, LONGEST).map_err(|error| error.to_string())? {
        match line {
            Line::Whole(bytes) => texts.push(String::from_utf8(bytes).unwrap()),
            Line::TooLong(bytes) => texts.push(format!("{bytes} bytes")),
        }
    }
    Ok(texts)
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstandard(text: &[u8]) -> Vec<u8> {
    zstd::encode_all(text, 3).unwrap()
}

#[test]
fn a_path_stands_for_a_file_a_folder_or_the_matches_of_a_pattern() {
    let place = TempDir::new().unwrap();
    let at = |name: &str| place.path().join(name);
    for name in [
        "b.jsonl",
        "a.jsonl.gz",
        "sub/c.ndjson.zst",
        "sub/deep/d.parquet",
        "notes.txt",
        ".hidden.jsonl",
        "_SUCCESS",
        "_x/e.jsonl",
        "x[1].jsonl",
    ] {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::write(at(name), "x").unwrap();
    }
    let all = ["a.jsonl.gz", "b.jsonl", "sub/c.ndjson.zst", "sub/deep/d.parquet", "x[1].jsonl"];
    assert_eq!(names(place.path()), all);
    assert_eq!(names(&at("b.jsonl")), ["b.jsonl"]);
    assert_eq!(names(&at("notes.txt")), ["notes.txt"], "who names a file means it");
    assert_eq!(names(&at("x[1].jsonl")), ["x[1].jsonl"], "a file goes before a pattern");
    assert_eq!(names(&at("*.jsonl*")), ["a.jsonl.gz", "b.jsonl", "x[1].jsonl"]);
    assert_eq!(names(&at("sub/*")), ["c.ndjson.zst"]);
    assert_eq!(names(&at("**/*.parquet")), ["sub/deep/d.parquet"]);
    assert_eq!(names(&at("[ab].*")), ["a.jsonl.gz", "b.jsonl"]);
    std::os::unix::fs::symlink(place.path(), at("sub/deep/above")).unwrap();
    assert!(names(place.path()).len() > all.len(), "a link that leads above ends somewhere");
}

#[test]
fn what_stands_for_nothing_is_refused_with_the_reason() {
    let place = TempDir::new().unwrap();
    fs::create_dir(place.path().join("empty")).unwrap();
    fs::write(place.path().join("empty/notes.txt"), "x").unwrap();
    let at = |name: &str| place.path().join(name).display().to_string();
    for (path, sentence) in [
        (
            at("nothing.jsonl"),
            format!(
                "`{}` cannot be read: No such file or directory (os error 2); check the name and its rights",
                at("nothing.jsonl")
            ),
        ),
        (
            at("*.jsonl"),
            format!(
                "no file matches `{}`; check the pattern, and that `include` lets the files through",
                at("*.jsonl")
            ),
        ),
        (
            at("a***b"),
            format!(
                "`{}` is no pattern: wildcards are either regular `*` or recursive `**`; a pattern has `*`, `?`, `[…]` and `**`",
                at("a***b")
            ),
        ),
        (
            at("empty"),
            format!(
                "the folder `{}` has no file whose name ends in .jsonl, .ndjson or .parquet, with or without .gz or .zst; name a file, or a pattern that matches other names",
                at("empty")
            ),
        ),
    ] {
        assert_eq!(find(Path::new(&path)).unwrap_err().to_string(), sentence);
    }
}

#[test]
fn compressed_files_have_the_lines_of_plain_ones() {
    let place = TempDir::new().unwrap();
    let text = "first\n\nthird \u{e9}\nlast".as_bytes();
    let halves = [gzip(&text[..9]), gzip(&text[9..])].concat();
    let frames = [zstandard(&text[..9]), zstandard(&text[9..])].concat();
    // Names say nothing.
    for (name, bytes) in [
        ("plain", text.to_vec()),
        ("a.gz", gzip(text)),
        ("b.jsonl", halves),
        ("c.zst", zstandard(text)),
        ("d.txt", frames),
    ] {
        let path = place.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_eq!(texts(&one(&path)).unwrap(), ["first", "", "third \u{e9}", "last"], "{name}");
    }
}

#[test]
fn damaged_and_hostile_files_end_with_a_sentence() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("file");
    let long = vec![b'x'; LONGEST + 1];
    for (bytes, outcome) in [
        (Vec::new(), Ok(vec![])),
        (b"x".to_vec(), Ok(vec!["x".to_owned()])),
        (gzip(b"a\nb\n")[..14].to_vec(), Err("")),
        (gzip(b"a\nb\n")[..3].to_vec(), Err("")),
        (zstandard(&long)[..20].to_vec(), Err("")),
        ([&gzip(b"a\n")[..], b"no gzip"].concat(), Err("")),
        ([&long[..], b"\nnext"].concat(), Ok(vec![format!("{} bytes", LONGEST + 1), "next".to_owned()])),
        (gzip(&long), Ok(vec![format!("{} bytes", LONGEST + 1)])),
    ] {
        fs::write(&path, &bytes).unwrap();
        match (texts(&one(&path)), outcome) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(_), Err(_)) => {}
            (found, expected) => panic!("{found:?} and not {expected:?}"),
        }
    }
}

#[test]
fn a_file_that_grows_without_end_is_given_up() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("bomb.zst");
    let mut encoder = zstd::Encoder::new(fs::File::create(&path).unwrap(), 1).unwrap();
    let zeros = vec![b'0'; 1 << 20];
    (0..1200).for_each(|_| encoder.write_all(&zeros).unwrap());
    encoder.finish().unwrap();
    let error = texts(&one(&path)).unwrap_err();
    assert_eq!(error, "decompressed it has more than 1000 times its size, as no dataset has");
}

/// A table with prompts, a number of tokens each, and a list.
fn table(path: &Path, rows: i64) {
    let schema = "message rows { required binary prompt (UTF8); required int64 max_tokens; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY);
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties.build())).unwrap();
    for first in (0..rows).step_by(10) {
        let numbers: Vec<i64> = (first..rows.min(first + 10)).collect();
        let mut group = writer.next_row_group().unwrap();
        let texts: Vec<ByteArray> = numbers.iter().map(|number| format!("prompt {number}").as_bytes().into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn rows_of_a_table_are_objects_by_column() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("table.parquet");
    table(&path, 25);
    let file = one(&path);
    assert_eq!(flashjob_dataset::Rows::count(&file).unwrap(), 25);
    let Content::Rows(rows) = open(&file).unwrap() else { panic!("lines") };
    let rows: Vec<_> = rows.map(|row| serde_json::Value::Object(row.unwrap())).collect();
    assert_eq!(rows.len(), 25);
    assert_eq!(rows[13], json!({"prompt": "prompt 13", "max_tokens": 13}));
}

#[test]
fn a_damaged_table_is_refused_and_never_a_panic() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("table.parquet");
    table(&path, 25);
    let whole = fs::read(&path).unwrap();
    let (mut refused, mut state) = (0, 1u64);
    for attempt in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..=attempt % 4 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let place = 4 + (state >> 33) as usize % (bytes.len() - 4);
            bytes[place] ^= (state >> 20) as u8 | 1;
        }
        if attempt % 5 == 0 {
            bytes.truncate(4 + (state >> 30) as usize % (whole.len() - 4));
        }
        fs::write(&path, &bytes).unwrap();
        let outcome = match open(&one(&path)) {
            Ok(Content::Rows(mut rows)) => rows.try_for_each(|row| row.map(drop)),
            Ok(Content::Lines(_)) => panic!("lines"),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            refused += 1;
            assert!(error.to_string().contains("is no table that can be read: "), "{error}");
        }
    }
    assert!(refused > 100, "{refused}");
}

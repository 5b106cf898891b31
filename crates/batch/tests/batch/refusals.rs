//! Directories that are not this batch's, and answers that cannot be kept.

use std::num::NonZeroU64;
use std::path::Path;

use flashjob_batch::{Error, Identity, InputFile, Layout, Shards};
use flashjob_config::OutputOrder;
use tempfile::TempDir;

use super::{answer, identity, layout, open};

fn refused(directory: &Path, layout: Layout, identity: &Identity) -> String {
    Shards::open(directory, layout, identity, &|_, _| true).unwrap_err().to_string()
}

#[test]
fn answers_of_another_batch_are_refused_with_what_differs() {
    let directory = TempDir::new().unwrap();
    let version = |version: &str| Some(version.to_owned());
    let mut first = identity();
    first.inputs[0].version = version("v1");
    drop(Shards::open(directory.path(), layout(5), &first, &|_, _| true).unwrap());
    let input = |name: &str, bytes, version| InputFile { name: name.to_owned(), bytes, version };
    let with_inputs = |inputs: Vec<InputFile>| Identity { inputs, ..first.clone() };
    let with_setting = |key: &str, value: &str| {
        let mut changed = first.clone();
        changed.settings.insert(key.to_owned(), value.to_owned());
        changed
    };
    let two = NonZeroU64::new(2).unwrap();
    for (layout, identity, difference) in [
        (
            layout(5),
            with_inputs(vec![input("b.jsonl", 100, None)]),
            "its input had `a.jsonl` where there is `b.jsonl` now",
        ),
        (layout(5), with_inputs(vec![input("a.jsonl", 99, None)]), "`a.jsonl` had 100 bytes and has 99 now"),
        (
            layout(5),
            with_inputs(vec![input("a.jsonl", 100, version("v2"))]),
            "`a.jsonl` was replaced by another version",
        ),
        (layout(5), with_inputs(vec![]), "its input had 1 files and has 0 now"),
        (
            layout(5),
            with_inputs(vec![first.inputs[0].clone(), input("b.jsonl", 1, None)]),
            "its input had 1 files and has 2 now",
        ),
        (layout(5), with_setting("model", "large"), "model was `tiny` and is `large` now"),
        (layout(5), with_setting("seed", "7"), "seed was not set and is `7` now"),
        (layout(6), first.clone(), "its shards had 5 entries and would have 6 now"),
        (Layout { order: OutputOrder::Any, ..layout(5) }, first.clone(), "the order of its answers was another one"),
    ] {
        assert_eq!(
            refused(directory.path(), layout, &identity),
            format!(
                "`{}` holds the answers of another batch: {difference}; name another results-dir, or remove its manifest.jsonl and \
                 outputs to begin anew",
                directory.path().display()
            )
        );
    }
    // A mount that does not tell versions says nothing against them, and another replica has a manifest of its own.
    drop(open(directory.path(), layout(5)).unwrap());
    drop(open(directory.path(), Layout { replica: 1, replicas: two, ..layout(5) }).unwrap());
}

#[test]
fn a_manifest_that_is_none_is_named() {
    let header = |version: u64| {
        format!(
            "{{\"schema_version\":{version},\"entries_per_shard\":5,\"order\":\"input\",\"replica\":0,\"replicas\":1,\"inputs\":[],\
             \"settings\":{{}}}}\n"
        )
    };
    for (content, reason) in [
        (String::new(), "its first line has no end"),
        ("{".to_owned(), "its first line has no end"),
        ("[]\n".to_owned(), "its first line is "),
        ("{}\n".to_owned(), "its first line is "),
        (header(2), "it has schema_version 2, and this version reads 1"),
        (header(1).replace(":5,", ":0,"), "its first line is "),
    ] {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("manifest.jsonl"), &content).unwrap();
        let said = refused(directory.path(), layout(5), &identity());
        let path = directory.path().join("manifest.jsonl");
        assert!(said.starts_with(&format!("`{}` is no manifest of flashjob: {reason}", path.display())), "{said}");
    }
}

#[test]
fn foreign_journals_and_damaged_lines_are_no_answers() {
    let directory = TempDir::new().unwrap();
    let mut shards = open(directory.path(), layout(5)).unwrap();
    answer(&mut shards, 3).unwrap();
    let journal = directory.path().join("outputs-00000.journal");
    let whole = std::fs::read_to_string(&journal).unwrap();
    let foreign = |entry: u64| {
        let rest = format!("{entry} completed 1 1 {{}}");
        format!("{:08x} {rest}\n", crc32fast::hash(rest.as_bytes()))
    };
    for (content, answered) in [
        (whole.clone(), vec![3]),
        (whole.replace("completed", "complexed"), vec![]),
        (format!("{}{}", whole, foreign(3)), vec![3]),
        (format!("{}{}{}", whole, foreign(99), foreign(4)), vec![3, 4]),
        (format!("{}\0\0\0\0{}", whole, foreign(4)), vec![3]),
        (foreign(u64::MAX), vec![]),
        ("\n\n".to_owned(), vec![]),
        ("00000000 \n".to_owned(), vec![]),
    ] {
        std::fs::write(&journal, &content).unwrap();
        let shards = open(directory.path(), layout(5)).unwrap();
        let found: Vec<u64> = (0..5).filter(|&entry| !shards.needs(entry)).collect();
        assert_eq!(found, answered, "{content:?}");
    }
    std::fs::write(directory.path().join("outputs-x.journal"), "").unwrap();
    std::fs::write(directory.path().join("outputs-00000.jsonl.journal"), "").unwrap();
    drop(open(directory.path(), layout(5)).unwrap());
}

#[test]
fn a_second_answer_is_refused_and_the_first_one_stays() {
    let directory = TempDir::new().unwrap();
    let mut shards = open(directory.path(), layout(2)).unwrap();
    answer(&mut shards, 0).unwrap();
    assert!(matches!(answer(&mut shards, 0), Err(Error::Twice(0))));
    answer(&mut shards, 1).unwrap();
    assert!(matches!(answer(&mut shards, 1), Err(Error::Twice(1))), "in a finished shard, too");
}

#[test]
fn an_answer_that_cannot_be_written_is_said_and_the_others_are_kept() {
    let directory = TempDir::new().unwrap();
    let mut shards = open(directory.path(), layout(3)).unwrap();
    answer(&mut shards, 0).unwrap();
    answer(&mut shards, 1).unwrap();
    // A directory in the place of the shard's file: writing it fails, as on a full disk.
    std::fs::create_dir(directory.path().join("outputs-00000.partial")).unwrap();
    let said = answer(&mut shards, 2).unwrap_err().to_string();
    assert!(
        said.contains("outputs-00000.jsonl` cannot be written") && said.contains("what is answered so far is kept"),
        "{said}"
    );
    drop(shards);
    std::fs::remove_dir(directory.path().join("outputs-00000.partial")).unwrap();
    let mut shards = open(directory.path(), layout(3)).unwrap();
    assert!((0..3).all(|entry| !shards.needs(entry)));
    assert_eq!(shards.end(3).unwrap().len(), 1);
    assert!(shards.is_complete());
}

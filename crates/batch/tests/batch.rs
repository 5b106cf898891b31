//! Answers of a batch, kept through kills, damage and disks that are full.

mod refusals;
mod remote;
mod resume;

use std::num::NonZeroU64;
use std::path::Path;

use flashjob_batch::{Answer, AnswerKind, Error, FinishedShard, Identity, InputFile, Layout, Shards};
use flashjob_config::OutputOrder;

pub(crate) fn identity() -> Identity {
    Identity {
        inputs: vec![InputFile { name: "a.jsonl".to_owned(), bytes: 100, version: None }],
        settings: [("model".to_owned(), "tiny".to_owned())].into(),
    }
}

pub(crate) fn layout(entries_per_shard: u64) -> Layout {
    Layout {
        entries_per_shard: NonZeroU64::new(entries_per_shard).unwrap(),
        order: OutputOrder::Input,
        replica: 0,
        replicas: NonZeroU64::MIN,
    }
}

pub(crate) fn open(directory: &Path, layout: Layout) -> Result<Shards, Error> {
    let is_stored = |name: &str, bytes| directory.join(name).metadata().is_ok_and(|file| file.len() == bytes);
    Shards::open(directory, layout, &identity(), &is_stored)
}

/// The answer of an entry, which is recognised by its text.
pub(crate) fn line(entry: u64) -> String {
    format!("{{\"entry\":{entry},\"text\":\"{}\"}}", "x".repeat((entry * 7 % 40) as usize))
}

pub(crate) fn answer(shards: &mut Shards, entry: u64) -> Result<Option<FinishedShard>, Error> {
    let kind = if entry.is_multiple_of(5) { AnswerKind::TooLong } else { AnswerKind::Completed };
    shards.answer(&Answer { entry, kind, input_tokens: entry, output_tokens: 1, line: &line(entry) })
}

/// Lines of all finished shards, in the order of their names.
pub(crate) fn outputs(directory: &Path) -> Vec<String> {
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|path| {
        path.extension().is_some_and(|kind| kind == "jsonl") && path.to_str().unwrap().contains("outputs-")
    });
    files.sort();
    files
        .iter()
        .flat_map(|path| std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

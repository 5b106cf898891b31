//! Jobs that are stopped, and those that go on with their answers.

use std::fs::OpenOptions;
use std::path::Path;

use flashjob_batch::{Answer, AnswerKind, Layout, Shards};
use flashjob_config::OutputOrder;
use proptest::prelude::*;
use tempfile::TempDir;

use super::{answer, layout, line, open, outputs};

/// Cuts up to `bytes` off the end of a file that was being written, as a kill in the middle of a write does.
fn tear(directory: &Path, choice: usize, bytes: u64) {
    let mut written: Vec<_> = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    written.retain(|path| path.extension().is_some_and(|kind| kind == "journal") || path.ends_with("manifest.jsonl"));
    written.sort();
    let path = &written[choice % written.len()];
    let length = path.metadata().unwrap().len();
    let first_line = std::fs::read(path).unwrap().iter().position(|byte| *byte == b'\n').map_or(0, |at| at as u64 + 1);
    // The identity was there before the first answer.
    let least = if path.ends_with("manifest.jsonl") { first_line } else { 0 };
    OpenOptions::new().write(true).open(path).unwrap().set_len(length.saturating_sub(bytes).max(least)).unwrap();
}

fn run(shards: &mut Shards, order: &[u64], most: usize) {
    let waiting: Vec<u64> = order.iter().copied().filter(|&entry| shards.needs(entry)).take(most).collect();
    for entry in waiting {
        answer(shards, entry).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever was torn, in the end each entry has one answer, in the order of the input.
    #[test]
    fn every_entry_is_answered_once_however_often_the_job_is_killed(
        entries in 0u64..60,
        per_shard in 1u64..20,
        seed in any::<u64>(),
        kills in prop::collection::vec((1usize..25, any::<usize>(), 0u64..90), 0..8),
    ) {
        let directory = TempDir::new().unwrap();
        let mut order: Vec<u64> = (0..entries).collect();
        let mut state = seed;
        for place in (1..order.len()).rev() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            order.swap(place, (state >> 33) as usize % (place + 1));
        }
        for (answers, choice, bytes) in kills {
            let mut shards = open(directory.path(), layout(per_shard)).unwrap();
            run(&mut shards, &order, answers);
            drop(shards);
            tear(directory.path(), choice, bytes);
        }
        let mut shards = open(directory.path(), layout(per_shard)).unwrap();
        run(&mut shards, &order, usize::MAX);
        shards.end(entries).unwrap();
        prop_assert!(shards.is_complete());
        prop_assert_eq!(shards.counts().answers(), entries);
        prop_assert_eq!(shards.counts().of(AnswerKind::TooLong), entries.div_ceil(5));
        prop_assert_eq!(shards.counts().input_tokens, (0..entries).sum::<u64>());
        prop_assert_eq!(outputs(directory.path()), (0..entries).map(line).collect::<Vec<_>>());
        let left = std::fs::read_dir(directory.path()).unwrap().count() as u64;
        prop_assert_eq!(left, 1 + entries.div_ceil(per_shard), "manifest and shards alone are left");
        // And nothing is left to do for one more.
        let mut again = open(directory.path(), layout(per_shard)).unwrap();
        again.end(entries).unwrap();
        prop_assert!(again.is_complete() && order.iter().all(|&entry| !again.needs(entry)));
    }
}

#[test]
fn replicas_answer_all_entries_together_and_each_its_own() {
    let directory = TempDir::new().unwrap();
    let replicas = std::num::NonZeroU64::new(3).unwrap();
    let mut answered = 0;
    for replica in 0..3 {
        let mut shards = open(directory.path(), Layout { replica, replicas, ..layout(4) }).unwrap();
        let mine: Vec<u64> = (0..50).filter(|&entry| shards.needs(entry)).collect();
        answered += mine.len();
        mine.iter().for_each(|&entry| _ = answer(&mut shards, entry).unwrap());
        shards.end(50).unwrap();
        assert!(shards.is_complete());
        assert_eq!(shards.entries(), Some(mine.len() as u64));
    }
    assert_eq!(answered, 50);
    assert_eq!(outputs(directory.path()), (0..50).map(line).collect::<Vec<_>>());
}

#[test]
fn answers_stay_in_the_order_in_which_they_came_where_that_is_wanted() {
    let directory = TempDir::new().unwrap();
    let mut shards = open(directory.path(), Layout { order: OutputOrder::Any, ..layout(3) }).unwrap();
    let finished: Vec<_> = [2, 0, 1].into_iter().filter_map(|entry| answer(&mut shards, entry).unwrap()).collect();
    assert_eq!(outputs(directory.path()), [2, 0, 1].map(line));
    assert_eq!((finished.len(), finished[0].counts.answers()), (1, 3));
    let file = std::fs::read(directory.path().join(finished[0].file_name())).unwrap();
    assert_eq!((finished[0].bytes, finished[0].crc32), (file.len() as u64, crc32fast::hash(&file)));
}

#[test]
fn a_shard_whose_file_was_cut_or_removed_is_answered_again() {
    for damage in [None, Some(10)] {
        let directory = TempDir::new().unwrap();
        let mut shards = open(directory.path(), layout(5)).unwrap();
        (0..10).for_each(|entry| _ = answer(&mut shards, entry).unwrap());
        let second = directory.path().join("outputs-00001.jsonl");
        match damage {
            None => std::fs::remove_file(&second).unwrap(),
            Some(bytes) => OpenOptions::new().write(true).open(&second).unwrap().set_len(bytes).unwrap(),
        }
        let mut shards = open(directory.path(), layout(5)).unwrap();
        assert_eq!((0..10).filter(|&entry| shards.needs(entry)).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
        assert_eq!(shards.counts().answers(), 5);
        (5..10).for_each(|entry| _ = answer(&mut shards, entry).unwrap());
        assert_eq!(outputs(directory.path()), (0..10).map(line).collect::<Vec<_>>());
    }
}

#[test]
fn a_shard_that_waits_for_its_slowest_answer_keeps_few_files_open() {
    let directory = TempDir::new().unwrap();
    let mut shards = open(directory.path(), layout(2)).unwrap();
    (0..200).step_by(2).for_each(|entry| _ = answer(&mut shards, entry).unwrap());
    let own = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let journals = own.filter(|path| path.starts_with(directory.path()) && path.to_string_lossy().contains("journal"));
    assert!((1..=32).contains(&journals.count()));
    (1..200).step_by(2).for_each(|entry| _ = answer(&mut shards, entry).unwrap());
    assert_eq!(outputs(directory.path()).len(), 200);
}

/// A manifest and a journal as versions wrote them that counted logits which are not finite among the failures.
#[test]
fn files_of_earlier_versions_are_gone_on_with() {
    let directory = TempDir::new().unwrap();
    let mut shards = open(directory.path(), layout(2)).unwrap();
    (1..5).for_each(|entry| {
        answer(&mut shards, entry).unwrap();
    });
    drop(shards);
    let manifest = directory.path().join("manifest.jsonl");
    let text = std::fs::read_to_string(&manifest).unwrap();
    assert!(text.contains(",\"non_finite\":0"), "{text}");
    std::fs::write(&manifest, text.replace(",\"non_finite\":0", "")).unwrap();
    let mut shards = open(directory.path(), layout(2)).unwrap();
    assert_eq!((shards.counts().answers(), shards.counts().of(AnswerKind::NonFinite)), (4, 0));
    assert_eq!((shards.finished().count(), shards.unfinished()), (1, 2));
    let (entry, kind) = (0, AnswerKind::NonFinite);
    shards.answer(&Answer { entry, kind, input_tokens: 1, output_tokens: 1, line: &line(0) }).unwrap();
    assert_eq!(shards.counts().of(AnswerKind::NonFinite), 1);
}

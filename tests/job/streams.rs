//! Entries of a batch while they are read: in bounded memory, in order, and up to the place where the dataset is at fault.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flashjob::prepare::{
    self, Entry, EntryStream, NextEntry, Preparation, Prepared, PreparedEntry, RefusalKind, prepare,
};
use flashjob_config::{Sampling, Schedule};
use flashjob_event::RequestId;
use flashjob_model::SharedTexts;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::child_engine::configured;
use super::tiny_model;

const WINDOW_BYTES: usize = 64 << 10;

/// Requests of a few tokens, but for each fiftieth line.
fn lines(count: usize) -> String {
    let mut text = String::new();
    (0..count).for_each(|line| match line % 50 {
        49 => text.push_str("no request\n"),
        _ => writeln!(text, "{{\"prompt\": \"word {line}\", \"id\": {line}}}").unwrap(),
    });
    text
}

fn written(folder: &TempDir, text: &str) -> std::path::PathBuf {
    let path = folder.path().join("batch.jsonl");
    std::fs::write(&path, text).unwrap();
    path
}

fn opened(path: &Path, is_done: Arc<dyn Fn(RequestId) -> bool + Send + Sync>) -> Result<EntryStream, prepare::Error> {
    let job = configured(&["--dataset=jsonl", "--dataset-path=unused", "--output-len=1"]);
    let prepared = prepare(Preparation {
        workload: &job.workload,
        sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: None },
        backend: job.backend,
        dataset_path: Some(path),
        texts: &SharedTexts::new(tiny_model(), tiny_model()),
        max_model_len: None,
        is_done,
        counted: Arc::new(drop),
        schedule: Schedule::Input,
        block_tokens: job.engine.block_tokens,
        window_bytes: WINDOW_BYTES,
        cancel: &CancellationToken::new(),
    });
    prepared.map(|prepared| match prepared {
        Prepared::Batch { entries, longest: None } => entries,
        _ => panic!("a batch is a stream"),
    })
}

fn stream(path: &Path) -> EntryStream {
    opened(path, Arc::new(|_| false)).unwrap()
}

fn next(stream: &EntryStream) -> Option<PreparedEntry> {
    match stream.next(Duration::from_secs(60)) {
        NextEntry::Entry(prepared) => Some(*prepared),
        NextEntry::Later => panic!("nothing comes"),
        NextEntry::End => None,
    }
}

/// Numbers of all entries that are left, ascending. Requests come in the order of the input, and so do refusals, which wait for nothing.
fn taken(stream: &EntryStream) -> Vec<u32> {
    let (mut asked, mut refused) = (Vec::new(), Vec::new());
    while let Some(PreparedEntry { entry, request }) = next(stream) {
        let (Entry::Asked { request: number, .. } | Entry::Skipped { request: number, .. }) = &entry;
        assert_eq!(request.map(|request| request.id), matches!(entry, Entry::Asked { .. }).then_some(*number));
        if matches!(entry, Entry::Asked { .. }) { &mut asked } else { &mut refused }.push(number.0);
    }
    assert!(asked.is_sorted() && refused.is_sorted());
    let mut all = [asked, refused].concat();
    all.sort_unstable();
    all
}

#[test]
fn the_window_holds_its_bytes_however_long_the_input_is() {
    const LINES: usize = 200_000;
    let folder = TempDir::new().unwrap();
    let stream = stream(&written(&folder, &lines(LINES)));
    assert_eq!(stream.count(), None, "all of the input was read ahead");
    assert_eq!(taken(&stream), (0..LINES as u32).collect::<Vec<_>>());
    assert_eq!(stream.count(), Some(LINES));
    assert!(stream.take_fault().is_none());
    // One entry more than fits may be in it.
    let most = stream.most_bytes();
    assert!((WINDOW_BYTES..WINDOW_BYTES + 1024).contains(&most), "{most}");
}

#[test]
fn entries_that_are_done_are_counted_and_not_prepared() {
    let folder = TempDir::new().unwrap();
    let stream = opened(&written(&folder, &lines(20_000)), Arc::new(|RequestId(number)| number % 3 > 0)).unwrap();
    assert_eq!(taken(&stream), (0..20_000).step_by(3).collect::<Vec<u32>>());
    assert_eq!(stream.count(), Some(20_000));
}

#[test]
fn a_fault_in_the_middle_leaves_what_was_read_before_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("batch.jsonl.gz");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines(60_000).as_bytes()).unwrap();
    let whole = gzip.finish().unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let stream = stream(&path);
    let numbers = taken(&stream);
    assert_eq!(numbers, (0..numbers.len() as u32).collect::<Vec<_>>());
    assert!((20_000..40_000).contains(&numbers.len()), "{}", numbers.len());
    assert_eq!(stream.count(), None);
    let fault = stream.take_fault().unwrap().to_string();
    assert!(fault.contains("batch.jsonl.gz cannot be read: "), "{fault}");
}

#[test]
fn a_fault_at_the_beginning_is_known_before_anything_is_taken() {
    let folder = TempDir::new().unwrap();
    let fault = opened(&written(&folder, &"no request\n".repeat(3)), Arc::new(|_| false)).err().unwrap().to_string();
    assert!(fault.contains("holds no prompt; the first that was skipped is line 1"), "{fault}");
}

#[test]
fn what_an_engine_does_not_serve_is_refused_once_that_is_known() {
    let folder = TempDir::new().unwrap();
    let text = "{\"prompt\": \"short\"}\n{\"prompt\": \"much much longer than the other\"}\n";
    let stream = stream(&written(&folder, text));
    let short = stream.ready(9)[0].prompt.len();
    stream.limit(short + 1);
    assert!(next(&stream).unwrap().request.is_some());
    match next(&stream).unwrap() {
        PreparedEntry { entry: Entry::Skipped { kind: RefusalKind::TooLong, reason, .. }, request: None } => {
            assert!(reason.contains(&format!("exceeds max-model-len={}", short + 1)), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reader_ends_when_nobody_takes_entries() {
    let folder = TempDir::new().unwrap();
    let held = Arc::new(());
    let stream = opened(&written(&folder, &lines(50_000)), {
        let held = held.clone();
        Arc::new(move |_| Arc::strong_count(&held) == 0)
    });
    assert!(Arc::strong_count(&held) > 1);
    drop(stream);
    // It lets go of what it reads with.
    while Arc::strong_count(&held) > 1 {
        std::thread::yield_now();
    }
}

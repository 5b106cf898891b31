//! The block map alone: sharing, reading ahead, memory, and what goes wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flashjob_mount::blocks::{BlockMap, Limits};
use flashjob_mount::filesystem::FileSystem;
use flashjob_mount::tree::{Inode, Tree};
use flashjob_mount::{Fault, FaultKind};
use tokio::runtime::Runtime;

use super::scripted_source::{Behaviour, ScriptedSource, content};

const KIB: usize = 1024;
const LIMITS: Limits = Limits { block_bytes: 8 * KIB, memory_bytes: 64 * KIB, fetches: 4, window_blocks: 8 };

/// A file system over scripted objects, and the runtime on which it fetches.
struct Bench {
    source: Arc<ScriptedSource>,
    files: FileSystem,
    runtime: Runtime,
}

impl Bench {
    fn new(limits: Limits, files: &[(&str, Vec<u8>)]) -> Self {
        Self::shaped(limits, files, |_| {})
    }

    fn shaped(limits: Limits, files: &[(&str, Vec<u8>)], shape: impl FnOnce(&mut ScriptedSource)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (mut source, objects) = ScriptedSource::new(files.iter().cloned());
        source.piece_bytes = KIB;
        shape(&mut source);
        let source = Arc::new(source);
        let blocks = BlockMap::new(source.clone(), limits, runtime.handle().clone());
        let files = FileSystem::new(Arc::new(Tree::new(&objects).0), blocks);
        Self { source, files, runtime }
    }

    fn open(&self, name: &str) -> Inode {
        let inode = self.files.tree().find(name.as_bytes()).unwrap();
        self.files.open(inode, false).unwrap();
        inode
    }

    fn read(&self, inode: Inode, offset: usize, len: usize) -> Result<Vec<u8>, Fault> {
        let read = self.files.read(inode, offset as u64, len as u64);
        let patient = async { tokio::time::timeout(Duration::from_secs(20), read.finish()).await };
        self.runtime.block_on(patient).expect("a read never hangs").map(|bytes| bytes.to_vec())
    }
}

#[test]
fn readers_of_one_block_share_one_fetch() {
    let bytes = content(1, 8 * KIB);
    let bench = Bench::new(LIMITS, &[("a", bytes.clone())]);
    bench.source.behave(|_, _| Behaviour::WaitAfter(0));
    let inode = bench.open("a");
    let reads: Vec<_> =
        (0..16).map(|reader| bench.runtime.spawn(bench.files.read(inode, reader * 512, 512).finish())).collect();
    bench.source.gate.add_permits(1);
    for (reader, read) in reads.into_iter().enumerate() {
        let read = bench.runtime.block_on(read).unwrap().unwrap();
        assert_eq!(&*read, &bytes[reader * 512..][..512]);
    }
    assert_eq!(bench.source.reads(), [("a".to_owned(), 0..8 * KIB as u64)]);
}

#[test]
fn a_reader_waits_for_its_own_bytes_only() {
    let bytes = content(1, 8 * KIB);
    let bench = Bench::new(LIMITS, &[("a", bytes.clone())]);
    bench.source.behave(|_, _| Behaviour::WaitAfter(2 * KIB));
    let inode = bench.open("a");
    assert_eq!(bench.read(inode, 0, 8).unwrap(), bytes[..8]);
    assert_eq!(bench.read(inode, KIB, KIB).unwrap(), bytes[KIB..2 * KIB]);
    bench.source.gate.add_permits(1);
    assert_eq!(bench.read(inode, KIB, 7 * KIB).unwrap(), bytes[KIB..]);
}

#[test]
fn reads_end_with_the_file() {
    let bytes = content(1, 20 * KIB + 5);
    let bench = Bench::new(LIMITS, &[("a", bytes.clone()), ("empty", vec![])]);
    let inode = bench.open("a");
    let end = bytes.len();
    for (offset, len) in [(0, end), (0, end + 1), (end - 5, 100), (end, 10), (end + 9, 10), (3, 0), (7 * KIB, 10 * KIB)]
    {
        let expected = &bytes[offset.min(end)..(offset + len).min(end)];
        assert_eq!(bench.read(inode, offset, len).unwrap(), expected, "{offset} {len}");
    }
    assert_eq!(&*bench.runtime.block_on(bench.files.read(inode, u64::MAX, u64::MAX).finish()).unwrap(), b"");
    let empty = bench.open("empty");
    assert_eq!(bench.read(empty, 0, 10).unwrap(), b"");
    assert!(bench.source.reads().iter().all(|(name, _)| name == "a"));
}

#[test]
fn a_sequence_is_fetched_ahead_and_each_block_once() {
    // Four times the memory, in steps that do not match the blocks.
    let bytes = content(1, 256 * KIB);
    // Long beside what a busy machine may keep a thread waiting: all fetches there may be are then under way at some time.
    let bench = Bench::shaped(LIMITS, &[("a", bytes.clone())], |source| source.latency = Duration::from_millis(50));
    let inode = bench.open("a");
    let mut read = Vec::new();
    while read.len() < bytes.len() {
        read.extend(bench.read(inode, read.len(), 3 * KIB).unwrap());
    }
    assert!(read == bytes);
    let mut starts: Vec<u64> = bench.source.reads().into_iter().map(|(_, range)| range.start).collect();
    starts.sort_unstable();
    assert_eq!(starts, (0..32).map(|block| block * 8 * KIB as u64).collect::<Vec<_>>());
    // One that a reader waits for may run beside those that have brought their last bytes and not ended yet.
    let most = bench.source.most_under_way();
    assert!((LIMITS.fetches..=2 * LIMITS.fetches).contains(&most), "{most}");
    let (_, peak) = bench.files.blocks().memory_bytes();
    assert!(peak <= LIMITS.memory_bytes, "{peak}");
}

#[test]
fn random_reads_fetch_nothing_else() {
    let bytes = content(1, 800 * KIB);
    let bench = Bench::new(LIMITS, &[("a", bytes.clone())]);
    let inode = bench.open("a");
    let blocks = [50, 10, 90, 30, 70];
    for block in blocks {
        let offset = block * 8 * KIB + 2 * KIB;
        assert_eq!(bench.read(inode, offset, 100).unwrap(), bytes[offset..offset + 100]);
    }
    let starts: Vec<u64> = bench.source.reads().into_iter().map(|(_, range)| range.start).collect();
    assert_eq!(starts, blocks.map(|block| (block * 8 * KIB) as u64));
}

#[test]
fn a_promise_is_fetched_at_once() {
    let bytes = content(1, 800 * KIB);
    let bench = Bench::new(LIMITS, &[("a", bytes.clone())]);
    bench.source.behave(|_, _| Behaviour::WaitAfter(0));
    let (start, len) = (405 * KIB, 40 * KIB);
    let reader = {
        let file = bench.files.open_direct("a".as_ref()).unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; len];
            file.read_exact_at(&mut buffer, start as u64).map(|()| buffer)
        })
    };
    // No block is there, and all that may be under way are.
    while bench.source.reads().len() < LIMITS.fetches {
        std::thread::sleep(Duration::from_millis(1));
    }
    bench.source.gate.add_permits(100);
    assert!(reader.join().unwrap().unwrap() == bytes[start..start + len]);
}

/// Blocks that were asked for, in that order.
fn asked(bench: &Bench) -> Vec<u64> {
    bench.source.reads().into_iter().map(|(_, range)| range.start / (8 * KIB) as u64).collect()
}

#[test]
fn a_plan_is_fetched_in_its_order_each_block_once() {
    let bytes = content(1, 96 * KIB);
    // One after the other: the order of fetches is the order of asking.
    // There is memory for all: what two tensors share, far apart, may otherwise have to go in between.
    let limits = Limits { fetches: 1, memory_bytes: 128 * KIB, ..LIMITS };
    let bench = Bench::new(limits, &[("a", bytes.clone())]);
    bench.source.behave(|_, _| Behaviour::WaitAfter(0));
    let file = bench.files.open_direct("a".as_ref()).unwrap();
    // Tensors in the loader's order, which share blocks 2 and 5 of the file.
    let tensors = [(44 * KIB, 60 * KIB), (0, 20 * KIB), (20 * KIB, 44 * KIB), (60 * KIB, 96 * KIB)];
    for (start, end) in tensors {
        file.will_read(start as u64..end as u64);
    }
    bench.source.gate.add_permits(100);
    for (start, end) in tensors {
        let mut buffer = vec![0; end - start];
        file.read_exact_at(&mut buffer, start as u64).unwrap();
        assert!(buffer == bytes[start..end], "{start}..{end}");
    }
    assert_eq!(asked(&bench), [5, 6, 7, 0, 1, 2, 3, 4, 8, 9, 10, 11]);
}

#[test]
fn a_plan_larger_than_the_memory_is_followed_all_the_same() {
    let bytes = content(1, 400 * KIB);
    let limits = Limits { memory_bytes: 3 * 8 * KIB, ..LIMITS };
    let bench = Bench::new(limits, &[("a", bytes.clone())]);
    let file = bench.files.open_direct("a".as_ref()).unwrap();
    // Backwards, in pieces that do not match the blocks, by several threads as a loader has.
    let starts: Vec<usize> = (0..400 * KIB).step_by(10 * KIB).rev().collect();
    starts.iter().for_each(|&start| file.will_read(start as u64..(start + 10 * KIB) as u64));
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut buffer = vec![0; 10 * KIB];
                while let Some(&start) = starts.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) {
                    file.read_exact_at(&mut buffer, start as u64).unwrap();
                    assert!(buffer == bytes[start..start + 10 * KIB], "{start}");
                }
            });
        }
    });
    let (_, peak) = bench.files.blocks().memory_bytes();
    assert!(peak <= limits.memory_bytes, "{peak}");
}

#[test]
fn a_plan_ends_with_its_reader() {
    let bench = Bench::new(LIMITS, &[("a", content(1, 800 * KIB)), ("b", content(2, 800 * KIB))]);
    bench.source.behave(|_, _| Behaviour::WaitAfter(0));
    let file = bench.files.open_direct("a".as_ref()).unwrap();
    file.will_read(0..800 * KIB as u64);
    while bench.source.reads().len() < LIMITS.fetches {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(file);
    bench.source.gate.add_permits(100);
    let inode = bench.open("b");
    bench.read(inode, 300 * KIB, 10).unwrap();
    let (of_a, _): (Vec<_>, Vec<_>) = bench.source.reads().into_iter().partition(|(name, _)| name == "a");
    assert_eq!(of_a.len(), LIMITS.fetches, "nothing more of a file that nobody has open");
}

#[test]
fn who_is_asked_to_slow_down_fetches_less_ahead() {
    for (throttled, expected) in [(0, 4), (1, 2)] {
        let bench = Bench::new(LIMITS, &[("a", content(1, 800 * KIB))]);
        bench.source.throttled.store(throttled, std::sync::atomic::Ordering::SeqCst);
        bench.source.behave(|_, _| Behaviour::WaitAfter(0));
        let file = bench.files.open_direct("a".as_ref()).unwrap();
        file.will_read(0..800 * KIB as u64);
        while bench.source.reads().len() < expected {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bench.source.reads().len(), expected, "asked to slow down {throttled} times");
        bench.source.gate.add_permits(1000);
        let mut buffer = vec![0; 800 * KIB];
        file.read_exact_at(&mut buffer, 0).unwrap();
        assert!(buffer == content(1, 800 * KIB));
    }
}

#[test]
fn many_readers_stay_within_the_memory() {
    let files: Vec<(String, Vec<u8>)> =
        (0..4).map(|file| (format!("file{file}"), content(file, 200 * KIB + file as usize))).collect();
    let named: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    for memory_blocks in [1, 2, 8] {
        let limits = Limits { memory_bytes: memory_blocks * 8 * KIB, ..LIMITS };
        let bench = Bench::new(limits, &named);
        std::thread::scope(|scope| {
            for reader in 0..64_usize {
                let (bench, bytes) = (&bench, &files[reader % 4].1);
                scope.spawn(move || {
                    let file = bench.files.open_direct(format!("file{}", reader % 4).as_ref()).unwrap();
                    let mut buffer = vec![0; 13 * KIB];
                    for step in 0..6 {
                        let offset = (reader * 31 + step * 17) * KIB % (180 * KIB);
                        file.read_exact_at(&mut buffer, offset as u64).unwrap();
                        assert!(buffer == bytes[offset..offset + buffer.len()], "reader {reader} at {offset}");
                    }
                });
            }
        });
        let (held, peak) = bench.files.blocks().memory_bytes();
        assert!(held <= peak && peak <= limits.memory_bytes, "{peak} of {}", limits.memory_bytes);
    }
}

#[test]
fn small_files_do_not_pile_up() {
    let files: Vec<(String, Vec<u8>)> = (0..500).map(|file| (format!("f{file:03}"), content(file, 300))).collect();
    let named: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let bench = Bench::new(LIMITS, &named);
    for (name, bytes) in &files {
        let inode = bench.open(name);
        assert_eq!(&bench.read(inode, 0, 4 * KIB).unwrap(), bytes);
        bench.files.close(inode);
    }
    // Whole files that were read and closed leave nothing, once their fetches have noticed that they are done.
    let patience = Instant::now() + Duration::from_secs(20);
    while bench.files.blocks().memory_bytes().0 > 0 {
        assert!(Instant::now() < patience, "{:?}", bench.files.blocks().memory_bytes());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_failed_fetch_is_told_to_all_and_not_kept() {
    let bytes = content(1, 32 * KIB);
    for kind in [FaultKind::Denied, FaultKind::Missing, FaultKind::Changed, FaultKind::Unreachable] {
        let bench = Bench::new(LIMITS, &[("a", bytes.clone())]);
        let inode = bench.open("a");
        bench.source.behave(move |_, _| Behaviour::FailAfter(3 * KIB, kind));
        let reads: Vec<_> = (0..3).map(|_| bench.runtime.spawn(bench.files.read(inode, 6000, 100).finish())).collect();
        for read in reads {
            assert_eq!(bench.runtime.block_on(read).unwrap().err().map(|fault| fault.kind()), Some(kind));
        }
        assert_eq!(bench.files.blocks().health().map(|fault| fault.kind()), Some(kind));
        bench.source.behave(|_, _| Behaviour::Serve);
        assert_eq!(bench.read(inode, 0, 32 * KIB).unwrap(), bytes);
        // The first one is what is reported, whatever came later.
        assert_eq!(bench.files.blocks().health().map(|fault| fault.kind()), Some(kind));
    }
}

#[test]
fn a_fault_ahead_of_a_reader_is_no_fault_of_the_reader() {
    let bytes = content(1, 64 * KIB);
    let bench = Bench::new(LIMITS, &[("a", bytes.clone())]);
    bench.source.behave(|_, range| match range.start {
        0 => Behaviour::Serve,
        _ => Behaviour::FailAfter(0, FaultKind::Unreachable),
    });
    let inode = bench.open("a");
    assert_eq!(bench.read(inode, 0, 6 * KIB).unwrap(), bytes[..6 * KIB]);
    while bench.source.reads().len() < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(bench.files.blocks().health(), None);
    // Nor is it tried again and again behind the reader's back.
    std::thread::sleep(Duration::from_millis(50));
    assert!(bench.source.reads().len() <= 1 + LIMITS.fetches);
}

#[test]
fn a_source_that_breaks_its_word_is_a_fault() {
    for behaviour in [
        Behaviour::StopAfter(0),
        Behaviour::StopAfter(5 * KIB),
        Behaviour::Overshoot(1),
        Behaviour::FailAfter(0, FaultKind::Unreachable),
        Behaviour::Panic,
    ] {
        let bytes = content(1, 8 * KIB);
        let bench = Bench::new(LIMITS, &[("a", bytes.clone())]);
        bench.source.behave(move |_, _| behaviour);
        let inode = bench.open("a");
        match (behaviour, bench.read(inode, 7 * KIB, KIB)) {
            // The bytes themselves are right; the block is not kept.
            (Behaviour::Overshoot(_), Ok(read)) => assert_eq!(read, bytes[7 * KIB..]),
            (_, result) => assert!(result.is_err(), "{behaviour:?}"),
        }
        bench.source.behave(|_, _| Behaviour::Serve);
        assert_eq!(bench.read(inode, 0, 8 * KIB).unwrap(), bytes, "{behaviour:?}");
    }
}

#[test]
fn after_the_end_every_read_fails_and_none_waits() {
    let bench = Bench::new(LIMITS, &[("a", content(1, 80 * KIB))]);
    bench.source.behave(|_, _| Behaviour::WaitAfter(0));
    let inode = bench.open("a");
    let file = bench.files.open_direct("a".as_ref()).unwrap();
    let waiting = std::thread::spawn(move || file.read_exact_at(&mut [0; 10], 70 * KIB as u64));
    while bench.source.reads().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    bench.files.blocks().shut();
    assert_eq!(bench.read(inode, 0, 10).unwrap_err().kind(), FaultKind::Closed);
    assert_eq!(bench.files.blocks().health(), None);
    bench.runtime.shutdown_background();
    assert!(waiting.join().unwrap().is_err());
}

#[test]
fn direct_reads_are_exact_or_fail() {
    let bytes = content(1, 100 * KIB + 7);
    let bench = Bench::new(LIMITS, &[("dir/a", bytes.clone())]);
    let file = bench.files.open_direct("dir/a".as_ref()).unwrap();
    assert_eq!(file.size_bytes(), bytes.len() as u64);
    for (offset, len) in [(0, bytes.len()), (bytes.len(), 0), (5, 0), (8 * KIB - 1, 2), (90 * KIB, 10 * KIB + 7)] {
        let mut buffer = vec![0; len];
        file.read_exact_at(&mut buffer, offset as u64).unwrap();
        assert!(buffer == bytes[offset..offset + len], "{offset} {len}");
    }
    for (offset, len) in [(0, bytes.len() as u64 + 1), (bytes.len() as u64, 1), (u64::MAX, 1)] {
        let error = file.read_exact_at(&mut vec![0; len as usize], offset).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
    let bench = Bench::new(LIMITS, &[("dir/a", bytes)]);
    let file = bench.files.open_direct("dir/a".as_ref()).unwrap();
    bench.source.behave(|_, _| Behaviour::FailAfter(0, FaultKind::Denied));
    let error = file.read_exact_at(&mut [0; 10], 0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("the test says so"));
    for path in ["dir", "dir/b", "", "a"] {
        assert!(bench.files.open_direct(path.as_ref()).is_err(), "{path}");
    }
}

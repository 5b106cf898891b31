//! The disk cache: faster or not there, never wrong.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flashjob::bucket::Object;
use flashjob::mount::FaultKind;
use flashjob::mount::blocks::{BlockMap, Limits};
use flashjob::mount::cache::DiskCache;
use flashjob::mount::filesystem::FileSystem;
use flashjob::mount::tree::Tree;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

use super::scripted_source::{Behaviour, ScriptedSource, content};
use crate::support::process::{Process, skip};

const KIB: usize = 1024;
const BLOCK: usize = 8 * KIB;
const LIMITS: Limits = Limits { block_bytes: BLOCK, memory_bytes: 4 * BLOCK, fetches: 4, window_blocks: 4 };

/// What is read of `objects` through a cache in `directory`, one file after the other, in a map of its own.
fn read_all(directory: &Path, limit: Option<u64>, objects: &[Object], source: &Arc<ScriptedSource>) -> Vec<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cache = Arc::new(DiskCache::open(directory, limit, source.clone()).unwrap());
    let blocks = BlockMap::new(cache, LIMITS, runtime.handle().clone());
    let files = FileSystem::new(Arc::new(Tree::new(objects).0), blocks);
    let read = |object: &Object| {
        let file = files.open_direct(object.name.as_ref()).unwrap();
        let mut bytes = vec![0; object.size_bytes as usize];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    let left = partials_in(directory);
    let read = objects.iter().map(|object| read(object).unwrap()).collect();
    // A reader has its bytes a moment before their block has its name.
    while partials_in(directory) > left {
        std::thread::sleep(Duration::from_millis(1));
    }
    runtime.shutdown_timeout(Duration::from_secs(20));
    read
}

/// How many blocks are being written, or were when their process was killed.
fn partials_in(directory: &Path) -> usize {
    let entries = fs::read_dir(directory.join("flashjob-blocks")).unwrap().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "partial")).count()
}

pub(super) fn blocks_in(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory.join("flashjob-blocks"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "block"))
        .collect();
    found.sort();
    found
}

/// Bytes of everything that is a block or becomes one.
fn used_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory.join("flashjob-blocks")).unwrap().flatten();
    let counted = entries.filter(|entry| entry.path().extension().is_some());
    counted.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Two files of 5 and 3 blocks, the last ones cut.
fn two_files() -> (Arc<ScriptedSource>, Vec<Object>, Vec<Vec<u8>>) {
    let bytes = vec![content(1, 4 * BLOCK + 77), content(2, 2 * BLOCK + 1)];
    let (source, objects) = ScriptedSource::new([("a", bytes[0].clone()), ("dir/b", bytes[1].clone())]);
    (Arc::new(source), objects, bytes)
}

#[test]
fn what_was_fetched_once_comes_from_the_disk() {
    let directory = TempDir::new().unwrap();
    let (source, objects, bytes) = two_files();
    assert!(read_all(directory.path(), None, &objects, &source) == bytes);
    assert_eq!((source.reads().len(), blocks_in(directory.path()).len()), (8, 8));
    source.behave(|_, _| Behaviour::FailAfter(0, FaultKind::Unreachable));
    assert!(read_all(directory.path(), None, &objects, &source) == bytes);
    assert_eq!(source.reads().len(), 8);
}

#[test]
fn another_version_is_another_block() {
    let directory = TempDir::new().unwrap();
    let (source, mut objects, bytes) = two_files();
    read_all(directory.path(), None, &objects, &source);
    objects[0].etag = Some("another".to_owned());
    assert!(read_all(directory.path(), None, &objects, &source) == bytes);
    assert_eq!(source.reads().len(), 8 + 5);
    // Without a version nothing is kept, and nothing that is kept is trusted.
    objects[1].etag = None;
    assert!(read_all(directory.path(), None, &objects, &source) == bytes);
    assert_eq!((source.reads().len(), blocks_in(directory.path()).len()), (8 + 5 + 3, 8 + 5));
}

#[test]
fn a_fetch_that_fails_leaves_nothing() {
    let directory = TempDir::new().unwrap();
    let (source, objects, bytes) = two_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for behaviour in
        [Behaviour::FailAfter(BLOCK / 2, FaultKind::Denied), Behaviour::StopAfter(100), Behaviour::Overshoot(1)]
    {
        source.behave(move |_, _| behaviour);
        let cache = Arc::new(DiskCache::open(directory.path(), Some(1 << 20), source.clone()).unwrap());
        let blocks = BlockMap::new(cache, LIMITS, runtime.handle().clone());
        let files = FileSystem::new(Arc::new(Tree::new(&objects).0), blocks);
        let file = files.open_direct("a".as_ref()).unwrap();
        let _ = file.read_exact_at(&mut vec![0; BLOCK], 0);
        // What is being written is given up in the background.
        while used_bytes(directory.path()) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    source.behave(|_, _| Behaviour::Serve);
    assert!(read_all(directory.path(), Some(1 << 20), &objects, &source) == bytes);
}

#[test]
pub(super) fn a_damaged_block_is_fetched_again_and_never_served() {
    let directory = TempDir::new().unwrap();
    let (source, objects, bytes) = two_files();
    read_all(directory.path(), None, &objects, &source);
    type Damage = fn(&Path, &[PathBuf]);
    let flip = |path: &Path, place: usize| {
        let mut bytes = fs::read(path).unwrap();
        let place = place.min(bytes.len() - 1);
        bytes[place] ^= 0x40;
        fs::write(path, bytes).unwrap();
    };
    let cases: [(&str, Damage); 9] = [
        ("first byte", |path, _| {
            fs::write(path, {
                let mut b = fs::read(path).unwrap();
                b[0] ^= 1;
                b
            })
            .unwrap()
        }),
        ("cut", |path, _| fs::File::options().write(true).open(path).unwrap().set_len(1000).unwrap()),
        ("one byte short", |path, _| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        }),
        ("longer", |path, _| fs::File::options().append(true).open(path).unwrap().write_all(b"x").unwrap()),
        ("empty", |path, _| fs::write(path, "").unwrap()),
        ("zeros", |path, _| fs::write(path, vec![0; fs::metadata(path).unwrap().len() as usize]).unwrap()),
        // A whole block, of somewhere else.
        ("another", |path, all| {
            fs::copy(all.iter().find(|other| *other != path).unwrap(), path).unwrap();
        }),
        ("a directory", |path, _| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("gone", |path, _| fs::remove_file(path).unwrap()),
    ];
    for (name, damage) in cases {
        let blocks = blocks_in(directory.path());
        let before = source.reads().len();
        damage(&blocks[0], &blocks);
        assert!(read_all(directory.path(), None, &objects, &source) == bytes, "{name}");
        assert_eq!(source.reads().len(), before + 1, "{name}");
        if blocks[0].is_dir() {
            fs::remove_dir(&blocks[0]).unwrap();
            read_all(directory.path(), None, &objects, &source);
        }
    }
    // Any single bit, wherever it is: the bytes, the key, the checksum, the end.
    let path = blocks_in(directory.path())[0].clone();
    let len = fs::metadata(&path).unwrap().len() as usize;
    for place in [1, len / 3, len / 2].into_iter().chain(len.saturating_sub(60)..len) {
        let before = source.reads().len();
        flip(&path, place);
        assert!(read_all(directory.path(), None, &objects, &source) == bytes, "{place} of {len}");
        assert_eq!(source.reads().len(), before + 1, "{place} of {len}");
    }
}

#[test]
fn the_directory_never_outgrows_its_limit() {
    let directory = TempDir::new().unwrap();
    let files: Vec<(String, Vec<u8>)> = (0..6).map(|n| (format!("f{n}"), content(n, 5 * BLOCK))).collect();
    let (source, objects) = ScriptedSource::new(files.clone());
    let source = Arc::new(source);
    let bytes: Vec<Vec<u8>> = files.into_iter().map(|(_, bytes)| bytes).collect();
    // A little more than 10 blocks with what stands behind their bytes.
    let limit = 10 * (BLOCK as u64 + 100);
    for round in 0..4 {
        assert!(read_all(directory.path(), Some(limit), &objects, &source) == bytes, "{round}");
        if round == 2 {
            // A sum that was damaged is not believed.
            fs::write(directory.path().join("flashjob-blocks/used-bytes"), [0; 12]).unwrap();
        }
        assert!(used_bytes(directory.path()) <= limit, "{round}: {}", used_bytes(directory.path()));
        assert!(blocks_in(directory.path()).len() >= 8, "{round}");
    }
    // What was used last stays.
    let before = source.reads().len();
    read_all(directory.path(), Some(limit), &objects[5..], &source);
    assert_eq!(source.reads().len(), before);
    // Less than a block: nothing is kept, nothing is in the way.
    let small = TempDir::new().unwrap();
    assert!(read_all(small.path(), Some(100), &objects, &source) == bytes);
    assert_eq!(used_bytes(small.path()), 0);
}

#[test]
fn several_processes_share_a_directory_and_its_limit() {
    let directory = TempDir::new().unwrap();
    let (source, objects, bytes) = two_files();
    let limit = 5 * (BLOCK as u64 + 100);
    let watched = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..10 {
                        // Each opening is a cache of its own, as each process has.
                        assert!(read_all(directory.path(), Some(limit), &objects, &source) == bytes);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while watched.load(std::sync::atomic::Ordering::Relaxed) {
                // As those who count do: with the lock, no file is between two names.
                if let Ok(ledger) = fs::File::open(directory.path().join("flashjob-blocks/used-bytes")) {
                    rustix::fs::flock(&ledger, rustix::fs::FlockOperation::LockExclusive).unwrap();
                    let used = used_bytes(directory.path());
                    assert!(used <= limit, "{used} of {limit}");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let results: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        watched.store(false, std::sync::atomic::Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
}

#[test]
#[ignore = "run in a process of its own by others"]
fn child_that_fills_a_cache() {
    let Some(directory) = std::env::var_os("CACHE_AT") else { return };
    let (mut source, objects) = ScriptedSource::new([("a", content(1, 200 * BLOCK))]);
    // Many small pieces: it is nearly always in the middle of a block.
    source.piece_bytes = 64;
    let source = Arc::new(source);
    let _ = std::io::stderr().write_all(b"filling\n");
    for _ in 0..1000 {
        read_all(directory.as_ref(), Some(40 * BLOCK as u64), &objects, &source);
    }
}

#[test]
pub(super) fn after_sigkill_only_whole_blocks_are_used() {
    let directory = TempDir::new().unwrap();
    let bytes = content(1, 200 * BLOCK);
    let (source, objects) = ScriptedSource::new([("a", bytes.clone())]);
    let source = Arc::new(source);
    let this = std::env::current_exe().unwrap();
    for round in 0..3 {
        let test = [this.to_str().unwrap(), "--exact", "mount::caching::child_that_fills_a_cache", "--ignored"];
        let mut child =
            Process::new(test[0]).args(&test[1..]).args(["--nocapture"]).env("CACHE_AT", directory.path()).start();
        child.wait_for_stderr("filling");
        while !directory.path().join("flashjob-blocks").exists() || blocks_in(directory.path()).len() < 5 {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.signal(libc::SIGKILL);
        drop(child);
        assert!(read_all(directory.path(), Some(40 * BLOCK as u64), &objects, &source) == [bytes.clone()], "{round}");
        assert!(used_bytes(directory.path()) <= 40 * BLOCK as u64);
    }
    // What killed processes left goes once nobody can be writing it any more.
    let left = directory.path().join("flashjob-blocks/0123456789abcdef-8192.partial");
    fs::write(&left, "half").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    fs::File::options().write(true).open(&left).unwrap().set_modified(long_ago).unwrap();
    read_all(directory.path(), Some(10 * BLOCK as u64), &objects, &source);
    assert!(!left.exists());
}

/// A file system of 64 KiB, taken away at the end.
struct Small(TempDir);

impl Small {
    fn new() -> Option<Self> {
        let directory = TempDir::new().unwrap();
        match mount("small", directory.path(), "tmpfs", MountFlags::empty(), Some(c"size=64k")) {
            Ok(()) => Some(Self(directory)),
            Err(errno) => {
                skip(&format!("mounting a tmpfs is refused: {errno}"));
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
pub(super) fn a_full_disk_and_one_that_cannot_be_written_are_in_nobodys_way() {
    let Some(small) = Small::new() else { return };
    let bytes = content(1, 20 * BLOCK);
    let (source, objects) = ScriptedSource::new([("a", bytes.clone())]);
    let source = Arc::new(source);
    // Twenty blocks into room for seven: those that fit are kept.
    assert!(read_all(small.0.path(), None, &objects, &source) == [bytes.clone()]);
    let kept = blocks_in(small.0.path()).len();
    assert!((1..8).contains(&kept), "{kept}");
    let whole: u64 = blocks_in(small.0.path()).iter().map(|block| fs::metadata(block).unwrap().len()).sum();
    assert_eq!(used_bytes(small.0.path()), whole, "nothing is left of what did not fit");
    // Read-only: what is there is used.
    mount_remount(small.0.path(), MountFlags::RDONLY, c"").unwrap();
    let before = source.reads().len();
    assert!(read_all(small.0.path(), None, &objects, &source) == [bytes.clone()]);
    assert_eq!(source.reads().len(), before + 20 - kept);
    // Nothing there at all.
    assert!(DiskCache::open(&small.0.path().join("none"), None, source.clone()).is_err());
}

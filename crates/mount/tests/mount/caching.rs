//! The disk cache: faster or not there, never wrong.

use std::ffi::CStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flashjob_bucket::Object;
use flashjob_mount::FaultKind;
use flashjob_mount::blocks::{BlockMap, Limits};
use flashjob_mount::cache::DiskCache;
use flashjob_mount::filesystem::FileSystem;
use flashjob_mount::tree::Tree;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

use super::scripted_source::{Behaviour, ScriptedSource, content};
use crate::support::process::{Process, skip};

const KIB: usize = 1024;
const BLOCK: usize = 8 * KIB;
const LIMITS: Limits = Limits { block_bytes: BLOCK, memory_bytes: 4 * BLOCK, fetches: 4, window_blocks: 4 };

/// A cache whose pieces are the blocks of the map.
fn open(directory: &Path, limit: Option<u64>, source: &Arc<ScriptedSource>) -> Arc<DiskCache> {
    Arc::new(DiskCache::open(directory, limit, BLOCK as u64, source.clone()).unwrap())
}

/// Contents of `objects`, read one after the other through a cache in `directory` and a new block map.
fn read_all(directory: &Path, limit: Option<u64>, objects: &[Object], source: &Arc<ScriptedSource>) -> Vec<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let blocks = BlockMap::new(open(directory, limit, source), LIMITS, runtime.handle().clone());
    let files = FileSystem::new(Arc::new(Tree::new(objects).0), blocks);
    let read = |object: &Object| {
        let file = files.open_direct(object.name.as_ref()).unwrap();
        let mut bytes = vec![0; object.size_bytes as usize];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    let read = objects.iter().map(|object| read(object).unwrap()).collect();
    // A reader has its bytes a moment before they are recorded; the end waits for that.
    files.blocks().shut();
    runtime.shutdown_timeout(Duration::from_secs(20));
    read
}

/// Every file of a cache's directory.
pub(super) fn cache_files(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(directory.join("flashjob-files")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// Files of the cache of one kind: `data` or `checks`.
pub(super) fn files_of_kind(directory: &Path, kind: &str) -> Vec<PathBuf> {
    cache_files(directory).into_iter().filter(|path| path.extension().is_some_and(|found| found == kind)).collect()
}

/// Disk usage of the files of objects, in bytes.
pub(super) fn used_bytes(directory: &Path) -> u64 {
    let counted = cache_files(directory).into_iter().filter(|path| path.extension().is_some());
    counted.filter_map(|path| fs::metadata(path).ok()).map(|metadata| metadata.blocks() * 512).sum()
}

/// Path of the data file of `object`.
fn data_name(object: &Object, source: &Arc<ScriptedSource>) -> PathBuf {
    let alone = TempDir::new().unwrap();
    read_all(alone.path(), None, std::slice::from_ref(object), source);
    Path::new("flashjob-files").join(files_of_kind(alone.path(), "data")[0].file_name().unwrap())
}

/// Has it look changed: nobody may take it for what it was.
fn unseal(path: &Path) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now()).unwrap();
}

fn flip(path: &Path, place: usize) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], place as u64).unwrap();
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
    assert_eq!((source.reads().len(), cache_files(directory.path()).len()), (8, 5));
    source.behave(|_, _| Behaviour::FailAfter(0, FaultKind::Unreachable));
    assert!(read_all(directory.path(), None, &objects, &source) == bytes);
    // And where every piece is looked at again.
    files_of_kind(directory.path(), "data").iter().for_each(|path| unseal(path));
    assert!(read_all(directory.path(), None, &objects, &source) == bytes);
    assert_eq!(source.reads().len(), 8);
}

#[test]
fn another_version_is_another_file() {
    let directory = TempDir::new().unwrap();
    let (source, mut objects, bytes) = two_files();
    read_all(directory.path(), None, &objects, &source);
    objects[0].etag = Some("another".to_owned());
    assert!(read_all(directory.path(), None, &objects, &source) == bytes);
    assert_eq!(source.reads().len(), 8 + 5);
    // Without a version nothing is kept, and nothing that is kept is trusted.
    objects[1].etag = None;
    assert!(read_all(directory.path(), None, &objects, &source) == bytes);
    assert_eq!((source.reads().len(), files_of_kind(directory.path(), "data").len()), (8 + 5 + 3, 3));
}

#[test]
fn a_fetch_that_fails_leaves_nothing_that_is_believed() {
    let directory = TempDir::new().unwrap();
    let (source, objects, bytes) = two_files();
    for behaviour in
        [Behaviour::FailAfter(BLOCK / 2, FaultKind::Denied), Behaviour::StopAfter(100), Behaviour::Overshoot(1)]
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        source.behave(move |_, _| behaviour);
        let cache = open(directory.path(), Some(1 << 20), &source);
        let blocks = BlockMap::new(cache, LIMITS, runtime.handle().clone());
        let files = FileSystem::new(Arc::new(Tree::new(&objects).0), blocks);
        let file = files.open_direct("a".as_ref()).unwrap();
        let _ = file.read_exact_at(&mut vec![0; BLOCK], 0);
        runtime.shutdown_timeout(Duration::from_secs(20));
    }
    source.behave(|_, _| Behaviour::Serve);
    let before = source.reads().len();
    assert!(read_all(directory.path(), Some(1 << 20), &objects, &source) == bytes);
    assert_eq!(source.reads().len(), before + 8);
}

#[test]
fn a_damaged_cache_is_fetched_again_and_never_served() {
    let directory = TempDir::new().unwrap();
    let (source, objects, bytes) = two_files();
    read_all(directory.path(), None, &objects, &source);
    let data = directory.path().join(data_name(&objects[0], &source));
    let checks = data.with_extension("checks");
    let other = directory.path().join(data_name(&objects[1], &source));
    let cut = |path: &Path, len: u64| fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
    let append = |path: &Path| fs::File::options().append(true).open(path).unwrap().write_all(b"x").unwrap();
    let zeros = |path: &Path| fs::write(path, vec![0; fs::metadata(path).unwrap().len() as usize]).unwrap();
    let copied = |from: &Path, to: &Path| assert!(fs::copy(from, to).is_ok());
    let a_directory = |path: &Path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    // What happens to the five blocks of the first file, and how many of them are fetched again.
    type Damage<'a> = (&'a str, usize, Box<dyn Fn() + 'a>);
    let cases: [Damage<'_>; 17] = [
        ("first byte", 1, Box::new(|| flip(&data, 0))),
        ("last byte", 1, Box::new(|| flip(&data, 4 * BLOCK + 76))),
        ("cut", 5, Box::new(|| cut(&data, 1000))),
        ("one byte short", 1, Box::new(|| cut(&data, 4 * BLOCK as u64 + 76))),
        ("longer", 0, Box::new(|| append(&data))),
        ("empty", 5, Box::new(|| fs::write(&data, "").unwrap())),
        ("zeros", 5, Box::new(|| zeros(&data))),
        ("another's bytes", 5, Box::new(|| copied(&other, &data))),
        ("gone", 5, Box::new(|| fs::remove_file(&data).unwrap())),
        ("a directory", 5, Box::new(|| a_directory(&data))),
        ("checks cut", 5, Box::new(|| cut(&checks, 128))),
        ("checks empty", 5, Box::new(|| fs::write(&checks, "").unwrap())),
        ("checks of zeros", 5, Box::new(|| zeros(&checks))),
        ("checks of another", 5, Box::new(|| copied(&other.with_extension("checks"), &checks))),
        ("checks gone", 5, Box::new(|| fs::remove_file(&checks).unwrap())),
        ("checks longer", 0, Box::new(|| append(&checks))),
        ("checks a directory", 5, Box::new(|| a_directory(&checks))),
    ];
    for (name, fetched, damage) in &cases {
        let before = source.reads().len();
        // Damage to the checks alone is none to a file that is sealed.
        unseal(&data);
        damage();
        assert!(read_all(directory.path(), None, &objects, &source) == bytes, "{name}");
        assert_eq!(source.reads().len(), before + fetched, "{name}");
        for path in [&data, &checks].into_iter().filter(|path| path.is_dir()) {
            fs::remove_dir(path).unwrap();
            read_all(directory.path(), None, &objects, &source);
        }
        // What was fetched again is kept.
        let before = source.reads().len();
        assert!(read_all(directory.path(), None, &objects, &source) == bytes, "{name}");
        assert_eq!(source.reads().len(), before, "{name}");
    }
    // Any single bit. Where the file is sealed it breaks the seal: nobody looked.
    for place in [1, BLOCK - 1, BLOCK, 2 * BLOCK + 3, 4 * BLOCK + 70] {
        let before = source.reads().len();
        flip(&data, place);
        assert!(read_all(directory.path(), None, &objects, &source) == bytes, "{place}");
        assert_eq!(source.reads().len(), before + 1, "{place}");
    }
    // The seal is in front, five records of eight bytes behind it.
    for place in (0..76).step_by(5).chain(128..168) {
        let before = source.reads().len();
        flip(&checks, place);
        unseal(&data);
        assert!(read_all(directory.path(), None, &objects, &source) == bytes, "{place}");
        assert_eq!(source.reads().len(), before + usize::from(place >= 128), "{place}");
    }
}

#[test]
fn a_link_in_the_place_of_a_file_is_not_followed() {
    let directory = TempDir::new().unwrap();
    let (source, objects, bytes) = two_files();
    let data = directory.path().join(data_name(&objects[0], &source));
    let victim = directory.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::create_dir_all(data.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&victim, &data).unwrap();
    std::os::unix::fs::symlink(&victim, data.with_extension("checks")).unwrap();
    assert!(read_all(directory.path(), Some(1 << 20), &objects, &source) == bytes);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn the_directory_never_outgrows_its_limit() {
    let directory = TempDir::new().unwrap();
    let files: Vec<(String, Vec<u8>)> = (0..6).map(|n| (format!("f{n}"), content(n, 5 * BLOCK))).collect();
    let (source, objects) = ScriptedSource::new(files.clone());
    let source = Arc::new(source);
    let bytes: Vec<Vec<u8>> = files.into_iter().map(|(_, bytes)| bytes).collect();
    let is_there = |file: usize| directory.path().join(data_name(&objects[file], &source)).exists();
    // Two files with their checks, and a part of a third.
    let limit = 120 << 10;
    for round in 0..4 {
        let before = source.reads().len();
        assert!(read_all(directory.path(), Some(limit), &objects, &source) == bytes, "{round}");
        let used = used_bytes(directory.path());
        assert!((limit * 3 / 4..=limit).contains(&used), "{round}: {used}");
        // What a process has open it does not give up for what it opens next: of more than there is room for, some is kept.
        let again = source.reads()[before..].iter().filter(|(name, _)| name == "f0" || name == "f1").count();
        assert_eq!(again, if round == 0 { 10 } else { 0 }, "{round}");
        if round == 2 {
            // A sum that was damaged is not believed.
            fs::write(directory.path().join("flashjob-files/used-bytes"), [0; 12]).unwrap();
        }
    }
    // For another process's files those go that were used longest ago, whole.
    for (file, hours) in [(0, 1), (1, 3), (2, 2)] {
        let checks = directory.path().join(data_name(&objects[file], &source)).with_extension("checks");
        let then = SystemTime::now() - Duration::from_secs(hours * 3600);
        fs::File::options().write(true).open(checks).unwrap().set_modified(then).unwrap();
    }
    read_all(directory.path(), Some(limit), &objects[5..], &source);
    assert_eq!((is_there(0), is_there(1), is_there(5)), (true, false, true));
    let before = source.reads().len();
    read_all(directory.path(), Some(limit), &objects[5..], &source);
    read_all(directory.path(), Some(limit), &objects[..1], &source);
    assert_eq!(source.reads().len(), before);
    // An object that alone is larger than the limit is kept in part, and that part stays.
    let (large, larger) = ScriptedSource::new([("large", content(9, 40 * BLOCK))]);
    let (large, alone) = (Arc::new(large), TempDir::new().unwrap());
    for round in 0..3 {
        let before = large.reads().len();
        read_all(alone.path(), Some(limit), &larger, &large);
        let fetched = large.reads().len() - before;
        assert!(if round == 0 { fetched == 40 } else { (40 - 14..=40 - 12).contains(&fetched) }, "{round}: {fetched}");
        assert!(used_bytes(alone.path()) <= limit);
    }
    // Less than a block: nothing is kept, nothing is in the way.
    let small = TempDir::new().unwrap();
    assert!(read_all(small.path(), Some(100), &objects, &source) == bytes);
    assert_eq!(used_bytes(small.path()), 0);
}

#[test]
fn what_an_older_layout_left_is_removed() {
    let directory = TempDir::new().unwrap();
    let (source, objects, bytes) = two_files();
    let old = directory.path().join("flashjob-blocks");
    let names = ["0123456789abcdef0123456789abcdef.block", "0123456789abcdef-8192.partial", "used-bytes"];
    for stranger in [false, true] {
        fs::create_dir(&old).unwrap();
        names.iter().for_each(|name| fs::write(old.join(name), "old").unwrap());
        if stranger {
            fs::write(old.join("notes.txt"), "somebody's").unwrap();
        }
        assert!(read_all(directory.path(), None, &objects, &source) == bytes);
        assert_eq!((old.exists(), old.join("notes.txt").exists()), (stranger, stranger));
        assert!(names.iter().all(|name| !old.join(name).exists()));
    }
}

#[test]
fn several_processes_share_a_directory_and_its_limit() {
    let directory = TempDir::new().unwrap();
    let (source, objects, bytes) = two_files();
    // Of 64 KiB.
    let limit = 56 << 10;
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
                // As those who count do: room is given out under the lock.
                if let Ok(ledger) = fs::File::open(directory.path().join("flashjob-files/used-bytes")) {
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
fn after_sigkill_only_whole_blocks_are_used() {
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
        while !directory.path().join("flashjob-files").exists() || used_bytes(directory.path()) < 5 * BLOCK as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.signal(libc::SIGKILL);
        drop(child);
        assert!(read_all(directory.path(), Some(40 * BLOCK as u64), &objects, &source) == [bytes.clone()], "{round}");
        assert!(used_bytes(directory.path()) <= 40 * BLOCK as u64);
    }
    // What killed processes left goes once nobody can be writing it any more.
    let left = directory.path().join("flashjob-files/0123456789abcdef.partial");
    fs::write(&left, "half").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    fs::File::options().write(true).open(&left).unwrap().set_modified(long_ago).unwrap();
    read_all(directory.path(), Some(10 * BLOCK as u64), &objects, &source);
    assert!(!left.exists());
}

/// A file system of its own, taken away at the end.
pub(super) struct MemoryDisk(TempDir);

impl MemoryDisk {
    /// `None`, said so, where this machine refuses mounts.
    pub(super) fn new(size: &CStr) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        match mount("memory", directory.path(), "tmpfs", MountFlags::empty(), Some(size)) {
            Ok(()) => Some(Self(directory)),
            Err(errno) => {
                skip(&format!("mounting a tmpfs is refused: {errno}"));
                None
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// It is refused while a file is open to be written. Whatever another test starts has ours open, too, until it becomes a
    /// program of its own.
    pub(super) fn make_read_only(&self) {
        loop {
            match mount_remount(self.path(), MountFlags::RDONLY, c"") {
                Err(Errno::BUSY) => std::thread::sleep(Duration::from_millis(1)),
                done => return done.unwrap(),
            }
        }
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_and_one_that_cannot_be_written_are_in_nobodys_way() {
    let Some(small) = MemoryDisk::new(c"size=64k") else { return };
    let bytes = content(1, 20 * BLOCK);
    let (source, objects) = ScriptedSource::new([("a", bytes.clone())]);
    let source = Arc::new(source);
    // Twenty blocks into room for seven: those that fit are kept.
    assert!(read_all(small.path(), None, &objects, &source) == [bytes.clone()]);
    let data = &files_of_kind(small.path(), "data")[0];
    let kept = fs::metadata(data).unwrap().blocks() as usize * 512 / BLOCK;
    assert!((1..8).contains(&kept), "{kept}");
    // Read-only: what is there is used.
    small.make_read_only();
    let before = source.reads().len();
    assert!(read_all(small.path(), None, &objects, &source) == [bytes.clone()]);
    assert_eq!(source.reads().len(), before + 20 - kept);
    // Nothing there at all.
    assert!(DiskCache::open(&small.path().join("none"), None, BLOCK as u64, source.clone()).is_err());
}

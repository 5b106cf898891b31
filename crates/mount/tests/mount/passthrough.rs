//! Whole files of the disk cache, read by the kernel itself: when it may, and that nobody sees the difference.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flashjob_bucket::Object;
use flashjob_config::{InputStorage, MountConfig, MountMode};
use flashjob_mount::cache::{DiskCache, PIECE_BYTES};
use flashjob_mount::{Error, Mounted, mount_source};
use md5::{Digest as _, Md5};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::caching::{MemoryDisk, files_of_kind, used_bytes};
use super::scripted_source::{ScriptedSource, content};
use super::{config, input, mounts_at, wait};
use crate::support::process::{Process, installed, skip};

const MIB: usize = 1 << 20;

/// Two blocks and a bit, the last piece cut.
const BYTES: usize = 17 * MIB + 123;

/// One file, a cache that holds nothing yet, and a place to mount at.
struct Stage {
    root: TempDir,
    cache: TempDir,
    source: Arc<ScriptedSource>,
    objects: Vec<Object>,
    bytes: Vec<u8>,
}

impl Stage {
    fn new() -> Self {
        let bytes = content(5, BYTES);
        let (source, objects) = ScriptedSource::new([("weights", bytes.clone())]);
        let (root, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        Self { root, cache, source: Arc::new(source), objects, bytes }
    }

    fn mount(&self) -> Option<Mounted> {
        mount_cached(self.root.path(), self.cache.path(), None, &self.objects, &self.source)
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("weights")
    }

    fn data(&self) -> PathBuf {
        files_of_kind(self.cache.path(), "data").remove(0)
    }

    /// Reads all of it through a mount of its own.
    fn read_through(&self) -> Option<()> {
        let mounted = self.mount()?;
        assert!(fs::read(self.path()).unwrap() == self.bytes);
        mounted.unmount().unwrap();
        Some(())
    }

    /// With a cache that holds all of it. `None`, said so, where this machine has no FUSE or no passthrough.
    fn filled() -> Option<Self> {
        let stage = Self::new();
        stage.read_through()?;
        let probe = stage.mount()?;
        drop(File::open(stage.path()).unwrap());
        let passes = probe.passed_through() == Some(1);
        probe.unmount().unwrap();
        if !passes {
            skip("this kernel reads no files of other file systems for FUSE");
            return None;
        }
        Some(stage)
    }
}

fn mount_cached(
    location: &Path,
    cache: &Path,
    limit: Option<u64>,
    objects: &[Object],
    source: &Arc<ScriptedSource>,
) -> Option<Mounted> {
    let config = MountConfig { cache_directory: Some(cache.to_owned()), ..config(MountMode::Fuse) };
    let input = InputStorage { volume_bytes: limit, ..input(location) };
    match wait(mount_source(&input, &config, objects, source.clone(), &CancellationToken::new())) {
        Ok(mounted) => Some(mounted),
        Err(error @ Error::FuseRefused { .. }) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn flip(path: &Path, place: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 1], place).unwrap();
}

fn hex_md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_second_mount_has_the_kernel_read_the_cached_file() {
    let Some(stage) = Stage::filled() else { return };
    let fetched = stage.source.reads().len();
    let mounted = stage.mount().unwrap();
    assert!(fs::read(stage.path()).unwrap() == stage.bytes);
    let mut piece = vec![0; 3 * MIB];
    let file = File::open(stage.path()).unwrap();
    file.read_exact_at(&mut piece, (BYTES - 3 * MIB) as u64).unwrap();
    assert!(piece == stage.bytes[BYTES - piece.len()..]);
    assert_eq!(file.read_at(&mut piece, BYTES as u64).unwrap(), 0);
    assert_eq!(file.metadata().unwrap().len(), BYTES as u64);
    assert_eq!(mounted.passed_through(), Some(2));
    // The loader's door leads to the same file.
    let direct = mounted.direct().unwrap().open(Path::new("weights")).unwrap();
    assert!(direct.is_local());
    direct.will_read(0..BYTES as u64);
    direct.read_exact_at(&mut piece, 1234).unwrap();
    assert!(piece == stage.bytes[1234..1234 + piece.len()]);
    assert!(direct.read_exact_at(&mut piece, BYTES as u64 - 1).is_err());
    assert_eq!(mounted.memory_bytes().unwrap().1, 0, "no block was needed");
    assert_eq!(stage.source.reads().len(), fetched);
    drop(file);
    mounted.unmount().unwrap();
}

#[test]
fn another_process_maps_it_and_sixty_four_read_it() {
    let (Some(stage), Some(python)) = (Stage::filled(), installed("python3", "python3")) else { return };
    let fetched = stage.source.reads().len();
    let mounted = stage.mount().unwrap();
    let program = "\
import hashlib, mmap, sys, concurrent.futures as futures
with open(sys.argv[1], 'rb') as file:
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
def touch(part):
    return sum(view[place] for place in range(part * len(view) // 8, (part + 1) * len(view) // 8, 4096))
with futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(touch, range(8)))
print(hashlib.md5(view).hexdigest())
";
    let child = Process::new(python).args(["-c".as_ref(), program.as_ref(), stage.path().as_os_str()]).start();
    std::thread::scope(|scope| {
        for reader in 0..64_usize {
            let stage = &stage;
            scope.spawn(move || {
                let mut buffer = vec![0; 300_000];
                for step in 0..8 {
                    let file = File::open(stage.path()).unwrap();
                    let offset = (reader * 1_234_567 + step * 3_456_789) % (BYTES - buffer.len());
                    file.read_exact_at(&mut buffer, offset as u64).unwrap();
                    assert!(buffer == stage.bytes[offset..offset + buffer.len()], "reader {reader} at {offset}");
                }
            });
        }
    });
    assert_eq!(child.wait().expect_code(0).stdout.trim(), hex_md5(&stage.bytes));
    assert_eq!(mounted.passed_through(), Some(64 * 8 + 1));
    assert_eq!(stage.source.reads().len(), fetched);
    mounted.unmount().unwrap();
}

#[test]
fn what_is_damaged_between_two_mounts_is_fetched_again() {
    let Some(stage) = Stage::filled() else { return };
    type Damage = fn(&Path);
    let cases: [(&str, usize, Damage); 4] = [
        ("a bit", 1, |path| flip(path, 9 * MIB as u64)),
        // The first block whole, its second half, and what is behind it.
        ("cut", 3, |path| File::options().write(true).open(path).unwrap().set_len(5 * MIB as u64).unwrap()),
        ("written over with what was there", 0, |path| {
            flip(path, 1);
            flip(path, 1);
        }),
        ("gone", 3, |path| fs::remove_file(path).unwrap()),
    ];
    for (name, blocks, damage) in cases {
        damage(&stage.data());
        let before = stage.source.reads().len();
        let mounted = stage.mount().unwrap();
        let held = File::open(stage.path()).unwrap();
        assert!(fs::read(stage.path()).unwrap() == stage.bytes, "{name}");
        assert_eq!((mounted.passed_through(), stage.source.reads().len() - before), (Some(0), blocks), "{name}");
        drop(held);
        mounted.unmount().unwrap();
        // All of it was checked or written by one process: the next one may pass it on.
        let mounted = stage.mount().unwrap();
        assert!(fs::read(stage.path()).unwrap() == stage.bytes, "{name}");
        assert_eq!((mounted.passed_through(), stage.source.reads().len() - before), (Some(1), blocks), "{name}");
        mounted.unmount().unwrap();
    }
}

#[test]
fn a_file_that_was_not_read_whole_since_it_changed_is_not_passed_on() {
    let Some(stage) = Stage::filled() else { return };
    // A process that has checked all of it; then somebody changes it, and one block is checked again.
    let mounted = stage.mount().unwrap();
    flip(&stage.data(), 1);
    assert!(fs::read(stage.path()).unwrap() == stage.bytes);
    flip(&stage.data(), 16 * MIB as u64);
    let mut byte = [0];
    // Not through the kernel's pages of it.
    let direct = mounted.direct().unwrap().open(Path::new("weights")).unwrap();
    direct.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte[0], stage.bytes[0]);
    drop(direct);
    mounted.unmount().unwrap();
    let mounted = stage.mount().unwrap();
    assert!(fs::read(stage.path()).unwrap() == stage.bytes);
    assert_eq!(mounted.passed_through(), Some(0));
    mounted.unmount().unwrap();
}

#[test]
fn an_inode_stays_what_its_first_open_made_it_until_its_last_close() {
    let Some(stage) = Stage::filled() else { return };
    flip(&stage.data(), 1);
    let mounted = stage.mount().unwrap();
    let first = File::open(stage.path()).unwrap();
    assert!(fs::read(stage.path()).unwrap() == stage.bytes);
    // It is sealed by now or soon. However often it is opened meanwhile, both kinds are never mixed, which would be EIO.
    for _ in 0..200 {
        let mut bytes = vec![0; MIB];
        File::open(stage.path()).unwrap().read_exact(&mut bytes).unwrap();
        assert!(bytes == stage.bytes[..MIB]);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(mounted.passed_through(), Some(0));
    drop(first);
    while mounted.passed_through() == Some(0) {
        assert!(fs::read(stage.path()).unwrap() == stage.bytes);
    }
    // And the other way round: it is not sealed any more, and is passed through as long as somebody has it open.
    let first = File::open(stage.path()).unwrap();
    flip(&stage.data(), 1);
    flip(&stage.data(), 1);
    let passed = mounted.passed_through();
    let mut bytes = vec![0; MIB];
    File::open(stage.path()).unwrap().read_exact(&mut bytes).unwrap();
    assert!(bytes == stage.bytes[..MIB] && mounted.passed_through() > passed);
    drop(first);
    mounted.unmount().unwrap();
}

#[test]
fn what_somebody_has_open_is_not_given_up_and_outlives_its_name() {
    let Some(stage) = Stage::filled() else { return };
    let mounted = stage.mount().unwrap();
    let mut held = File::open(stage.path()).unwrap();
    // Another process, with room for little more than what is there.
    let (source, objects) = ScriptedSource::new([("other", content(8, BYTES))]);
    let (source, limit) = (Arc::new(source), used_bytes(stage.cache.path()) + 4 * MIB as u64);
    let elsewhere = TempDir::new().unwrap();
    let other = mount_cached(elsewhere.path(), stage.cache.path(), Some(limit), &objects, &source).unwrap();
    assert!(fs::read(elsewhere.path().join("other")).unwrap() == content(8, BYTES));
    assert!(stage.data().exists() && used_bytes(stage.cache.path()) <= limit);
    other.unmount().unwrap();
    // By hand it can be removed.
    for path in files_of_kind(stage.cache.path(), "data") {
        fs::remove_file(path).unwrap();
    }
    let mut bytes = Vec::new();
    held.read_to_end(&mut bytes).unwrap();
    assert!(bytes == stage.bytes && fs::read(stage.path()).unwrap() == stage.bytes);
    drop(held);
    mounted.unmount().unwrap();
    // Once nobody has it open, it makes room for others.
    stage.read_through().unwrap();
    loop {
        let other = mount_cached(elsewhere.path(), stage.cache.path(), Some(limit), &objects, &source).unwrap();
        assert!(fs::read(elsewhere.path().join("other")).unwrap() == content(8, BYTES));
        let passed = other.passed_through();
        other.unmount().unwrap();
        if passed == Some(1) {
            break;
        }
    }
    assert_eq!(files_of_kind(stage.cache.path(), "data").len(), 1);
}

#[test]
fn two_mounts_fill_and_share_one_cache() {
    let stage = Stage::new();
    let second = TempDir::new().unwrap();
    let Some(one) = stage.mount() else { return };
    let two = mount_cached(second.path(), stage.cache.path(), None, &stage.objects, &stage.source).unwrap();
    std::thread::scope(|scope| {
        for location in [stage.root.path(), second.path()] {
            let bytes = &stage.bytes;
            scope.spawn(move || assert!(fs::read(location.join("weights")).unwrap() == *bytes));
        }
    });
    one.unmount().unwrap();
    two.unmount().unwrap();
    let fetched = stage.source.reads().len();
    // Whoever wrote what: a third has all of it, and after that the kernel may have it.
    for _ in 0..2 {
        stage.read_through().unwrap();
    }
    assert_eq!(stage.source.reads().len(), fetched);
    let mounted = stage.mount().unwrap();
    assert!(fs::read(stage.path()).unwrap() == stage.bytes);
    assert!(mounted.passed_through() == Some(1) || Stage::filled().is_none());
    mounted.unmount().unwrap();
}

#[test]
fn an_unmount_while_it_is_read_leaves_nothing() {
    let Some(stage) = Stage::filled() else { return };
    let mounted = stage.mount().unwrap();
    let mut held = File::open(stage.path()).unwrap();
    let mut bytes = vec![0; MIB];
    held.read_exact(&mut bytes).unwrap();
    mounted.unmount().unwrap();
    assert_eq!(mounts_at(stage.root.path()), 0);
    // The kernel may go on with it; then the bytes are the right ones.
    if held.read_exact(&mut bytes).is_ok() {
        assert!(bytes == stage.bytes[MIB..2 * MIB]);
    }
    drop(held);
    stage.read_through().unwrap();
}

#[test]
fn a_cache_that_cannot_be_written_is_passed_through_all_the_same() {
    let Some(Stage { root, source, objects, bytes, .. }) = Stage::filled() else { return };
    let Some(disk) = MemoryDisk::new(c"size=64m") else { return };
    let read_through = || {
        let mounted = mount_cached(root.path(), disk.path(), None, &objects, &source).unwrap();
        assert!(fs::read(root.path().join("weights")).unwrap() == bytes);
        let passed = mounted.passed_through();
        mounted.unmount().unwrap();
        (passed, source.reads().len())
    };
    let (_, fetched) = read_through();
    disk.make_read_only();
    assert_eq!(read_through(), (Some(1), fetched));
}

#[test]
#[ignore = "run in a process of its own by others"]
fn child_that_mounts_with_a_cache() {
    let (Some(location), Some(cache)) = (std::env::var_os("MOUNT_AT"), std::env::var_os("CACHE_AT")) else { return };
    let (mut source, objects) = ScriptedSource::new([("weights", content(5, BYTES))]);
    // Slowly enough to be killed on the way.
    source.piece_bytes = 512;
    let mounted = mount_cached(location.as_ref(), cache.as_ref(), None, &objects, &Arc::new(source));
    let _ = std::io::stderr().write_all(b"mounted\n");
    loop {
        let _ = fs::read(Path::new(&location).join("weights"));
        assert!(mounted.is_some());
    }
}

#[test]
fn after_sigkill_what_was_written_is_used_and_no_more_than_that() {
    let Some(stage) = Stage::filled() else { return };
    for wanted_mib in [0, 1, 9] {
        for path in super::caching::cache_files(stage.cache.path()) {
            fs::remove_file(path).unwrap();
        }
        let this = std::env::current_exe().unwrap();
        let test =
            [this.to_str().unwrap(), "--exact", "mount::passthrough::child_that_mounts_with_a_cache", "--ignored"];
        let child = Process::new(test[0]).args(&test[1..]).args(["--nocapture"]).env("CACHE_AT", stage.cache.path());
        let mut child = child.env("MOUNT_AT", stage.root.path()).start();
        child.wait_for_stderr("mounted");
        while used_bytes(stage.cache.path()) <= wanted_mib * PIECE_BYTES {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.signal(libc::SIGKILL);
        drop(child);
        stage.read_through().unwrap();
        let fetched = stage.source.reads().len();
        let mounted = stage.mount().unwrap();
        assert!(fs::read(stage.path()).unwrap() == stage.bytes);
        assert_eq!((mounted.passed_through(), stage.source.reads().len()), (Some(1), fetched), "{wanted_mib} MiB");
        mounted.unmount().unwrap();
    }
}

#[test]
fn the_cache_alone_has_no_whole_file_before_all_of_it_was_read() {
    let stage = Stage::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cache = DiskCache::open(stage.cache.path(), None, PIECE_BYTES, stage.source.clone()).unwrap();
    use flashjob_mount::source::BlockSource as _;
    let read = |range: std::ops::Range<usize>| {
        let mut read = Vec::new();
        let (object, sink) = (&stage.objects[0], &mut |piece: &[u8]| read.extend_from_slice(piece));
        runtime.block_on(cache.read(object, range.start as u64..range.end as u64, sink)).unwrap();
        assert!(read == stage.bytes[range]);
    };
    // Not of whole pieces: handed through, and not kept.
    read(5..10);
    assert!(cache.whole(&stage.objects[0]).is_none() && files_of_kind(stage.cache.path(), "data").is_empty());
    read(0..16 * MIB);
    read(0..MIB);
    assert!(cache.whole(&stage.objects[0]).is_none());
    read(16 * MIB..BYTES);
    // It is sealed a moment later.
    while cache.whole(&stage.objects[0]).is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!((cache.hits_and_misses(), stage.source.reads().len()), ((1, 2), 3));
}

//! The bound on the cache's directory, kept by all processes that use it.
//!
//! A ledger file holds the sum of disk usage and its CRC-32. A process that adds to it holds its lock; one that finds too
//! little room recounts the directory and evicts whole versions, least recently used first (LRU), and none that a living
//! process has open. Space is allocated before a byte is written. The sum may be too large, which costs a needless
//! recount, and is never too small. Both locks end with their processes; the ledger's is waited for only briefly, since a
//! block that is not kept costs little.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::version::{CHECKS, DATA};

const LEDGER: &str = "used-bytes";
/// Attempts to take the lock; with the pause in between, 50 ms in all.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);
/// Extension of files that are not renamed into place yet.
const PARTIAL: &str = "partial";
/// Age at which a partial file counts as left by a process that is gone.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Divisor of the limit for spare space: where space is freed, a sixteenth of the limit is freed with it.
const SPARE_SHARE: u64 = 16;
/// Allocation unit of common file systems, in bytes.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Space accounting of the cache's directory.
pub(super) struct Space {
    directory: PathBuf,
    limit_bytes: Option<u64>,
    ledger: PathBuf,
}

/// Disk usage of one version.
#[derive(Default)]
struct Usage {
    bytes: u64,
    used: Option<SystemTime>,
}

impl Space {
    /// The space of `directory`, which must be writable.
    pub(super) fn open(directory: &Path, limit_bytes: Option<u64>) -> io::Result<Self> {
        let ledger = directory.join(LEDGER);
        File::options().read(true).write(true).create(true).truncate(false).open(&ledger)?;
        Ok(Self { directory: directory.to_owned(), limit_bytes, ledger })
    }

    /// Reserves space for `parts` of files, which `allocate` then has the file system allocate. `None` if no space can
    /// be freed.
    pub(super) fn reserve<T>(
        &self,
        parts: &[Range<u64>],
        allocate: impl FnOnce() -> io::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        let Some(limit) = self.limit_bytes else { return allocate() };
        // Rounded outwards to pages: what `st_blocks` will count, or the ledger would fall below the true sum.
        let pages = |part: &Range<u64>| part.end.div_ceil(PAGE_BYTES) - part.start / PAGE_BYTES;
        let bytes = parts.iter().map(pages).sum::<u64>() * PAGE_BYTES;
        if bytes > limit {
            return Ok(None);
        }
        // The lock is held until the blocks are allocated: another process that recounts must see them.
        let Some(ledger) = self.lock()? else { return Ok(None) };
        let used = match read(&ledger) {
            // A ledger that is damaged, or that leaves too little room, is replaced by a recount.
            Some(used) if used.saturating_add(bytes) <= limit => used,
            _ => self.make_room(limit - bytes, limit / SPARE_SHARE)?,
        };
        if used.saturating_add(bytes) > limit {
            write(&ledger, used)?;
            return Ok(None);
        }
        write(&ledger, used + bytes)?;
        allocate()
    }

    fn lock(&self) -> io::Result<Option<File>> {
        let ledger = File::options().read(true).write(true).create(true).truncate(false).open(&self.ledger)?;
        // Polled instead of blocking: a process that is stopped while it holds the lock must not stop all others.
        for _ in 0..TRIES {
            match flock(&ledger, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(ledger)),
                Err(Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(None)
    }

    /// Recounts the directory and evicts versions, least recently used first, until at most `most` bytes are left, and
    /// `spare` fewer once any must go. Returns the bytes that are left.
    fn make_room(&self, most: u64, spare: u64) -> io::Result<u64> {
        let (mut versions, mut used) = (HashMap::<String, Usage>::new(), 0_u64);
        let now = SystemTime::now();
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let path = entry.path();
            // Removed meanwhile: another process frees space, too.
            let Ok(metadata) = entry.metadata() else { continue };
            let modified = metadata.modified().unwrap_or(now);
            // Blocks, not length: data files are sparse.
            let bytes = metadata.blocks() * 512;
            let part =
                |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str()).unwrap_or_default().to_owned();
            let (stem, kind) = (part(path.file_stem()), part(path.extension()));
            match kind.as_str() {
                PARTIAL if now.duration_since(modified).is_ok_and(|age| age > ABANDONED) => {
                    let _ = fs::remove_file(&path);
                }
                PARTIAL => used += bytes,
                DATA | CHECKS => {
                    used += bytes;
                    let held = versions.entry(stem).or_default();
                    held.bytes += bytes;
                    // The time of use is that of the checksums; see `Sidecar::touch`.
                    if kind == CHECKS || held.used.is_none() {
                        held.used = Some(modified);
                    }
                }
                _ => {}
            }
        }
        if used > most {
            let mut versions: Vec<_> = versions.into_iter().collect();
            versions.sort_unstable_by_key(|(_, held)| held.used);
            for (stem, held) in versions {
                if used <= most.saturating_sub(spare) {
                    break;
                }
                if self.give_up(&stem) {
                    used -= held.bytes;
                }
            }
        }
        Ok(used)
    }

    /// Evicts a version: removes its files unless a process has them open.
    fn give_up(&self, stem: &str) -> bool {
        let path = |kind| self.directory.join(format!("{stem}.{kind}"));
        let data = match super::entry::options(false).open(path(DATA)) {
            Ok(data) => Some(data),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => return false,
        };
        // Exclusive against the shared lock of `Entry::open`. Usage until both files are removed.
        if data.as_ref().is_some_and(|data| flock(data, FlockOperation::NonBlockingLockExclusive).is_err()) {
            return false;
        }
        let removed = |kind| match fs::remove_file(path(kind)) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(()) => true,
        };
        // Data first: checksums without data are harmless, the reverse would look like a file without any piece.
        removed(DATA) && removed(CHECKS)
    }
}

/// A random name for a file that is not renamed into place yet.
pub(super) fn partial_name() -> String {
    // Process IDs are not unique across containers.
    format!("{:016x}.{PARTIAL}", rand::random::<u64>())
}

/// The recorded sum, unless the file is damaged.
fn read(ledger: &File) -> Option<u64> {
    let (mut used, mut checksum) = ([0; 8], [0; 4]);
    ledger.read_exact_at(&mut used, 0).ok()?;
    ledger.read_exact_at(&mut checksum, used.len() as u64).ok()?;
    (crc32fast::hash(&used) == u32::from_le_bytes(checksum)).then(|| u64::from_le_bytes(used))
}

fn write(ledger: &File, used: u64) -> io::Result<()> {
    let used = used.to_le_bytes();
    ledger.write_all_at(&[&used[..], &crc32fast::hash(&used).to_le_bytes()].concat(), 0)
}

//! The bound on the cache's directory, kept by all processes that use it.
//!
//! A file beside the others holds the sum of what they take on disk and its checksum; whoever adds to it holds its lock, and
//! whoever finds too little room counts anew and gives up whole versions, those that were used longest ago first, and
//! none that a living process has open. Room is allocated before a byte is written. The sum may be too large, and never
//! is too small: then somebody counts who need not have. Both locks die with their processes; nobody waits for the first
//! one long, because a block that is not kept costs little.

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
/// How often the lock is asked for, and the pause in between: 50 ms in all.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);
/// Ends the name of what has no name of its own yet.
const PARTIAL: &str = "partial";
/// What still has none after so long belongs to a process that is gone.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Where room is made, it is made for more than one block: a sixteenth of the limit.
const SPARE_SHARE: u64 = 16;
/// What file systems give out at least.
pub(super) const PAGE_BYTES: u64 = 4096;

/// The directory's space.
pub(super) struct Space {
    directory: PathBuf,
    limit_bytes: Option<u64>,
    ledger: PathBuf,
}

/// The files of one version, as they are found.
#[derive(Default)]
struct Held {
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

    /// Takes room for `parts` of files, which `allocate` then has the file system give out. `None` where there is no room to
    /// be had.
    pub(super) fn reserve<T>(
        &self,
        parts: &[Range<u64>],
        allocate: impl FnOnce() -> io::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        let Some(limit) = self.limit_bytes else { return allocate() };
        let pages = |part: &Range<u64>| part.end.div_ceil(PAGE_BYTES) - part.start / PAGE_BYTES;
        let bytes = parts.iter().map(pages).sum::<u64>() * PAGE_BYTES;
        if bytes > limit {
            return Ok(None);
        }
        // Held until the room is given out: whoever counts anew sees it.
        let Some(ledger) = self.lock()? else { return Ok(None) };
        let used = match read(&ledger) {
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
        for _ in 0..TRIES {
            match flock(&ledger, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(ledger)),
                Err(Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(None)
    }

    /// Counts what is there and gives up versions until at most `most` bytes are left, `spare` fewer where that takes
    /// any; returns what is left.
    fn make_room(&self, most: u64, spare: u64) -> io::Result<u64> {
        let (mut versions, mut used) = (HashMap::<String, Held>::new(), 0_u64);
        let now = SystemTime::now();
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let path = entry.path();
            // Gone since: somebody else makes room.
            let Ok(metadata) = entry.metadata() else { continue };
            let modified = metadata.modified().unwrap_or(now);
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

    /// Removes the files of a version, unless somebody has them open.
    fn give_up(&self, stem: &str) -> bool {
        let path = |kind| self.directory.join(format!("{stem}.{kind}"));
        let data = match super::entry::options(false).open(path(DATA)) {
            Ok(data) => Some(data),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => return false,
        };
        // Held until both are gone.
        if data.as_ref().is_some_and(|data| flock(data, FlockOperation::NonBlockingLockExclusive).is_err()) {
            return false;
        }
        let removed = |kind| match fs::remove_file(path(kind)) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(()) => true,
        };
        removed(DATA) && removed(CHECKS)
    }
}

/// A name for a file that has none yet.
pub(super) fn partial_name() -> String {
    // Processes in containers share numbers: a random one tells them apart.
    format!("{:016x}.{PARTIAL}", rand::random::<u64>())
}

/// The sum, unless the file is damaged.
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

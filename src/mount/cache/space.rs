//! The bound on the cache's directory, kept by all processes that use it.
//!
//! A file beside the blocks holds their sum and its checksum; whoever adds to it holds the file's lock, and whoever finds too little
//! room counts anew and gives up blocks, those that were used longest ago first. Room is taken before a byte is
//! written. The lock dies with its process; nobody waits for it long, because a block that is not kept costs little.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::entry::{COMPLETE, PARTIAL};

const LEDGER: &str = "used-bytes";
/// How often the lock is asked for, and the pause in between: 50 ms in all.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);
/// What is not complete after so long belongs to a process that is gone.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Where room is made, it is made for more than one block: a sixteenth of the limit.
const SPARE_SHARE: u64 = 16;

/// The directory's space. Cheap to clone.
#[derive(Clone)]
pub(super) struct Space(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    limit_bytes: Option<u64>,
    ledger: PathBuf,
}

/// Room that was taken for one file.
pub(super) struct Reserved {
    space: Space,
    bytes: u64,
}

impl Space {
    /// The space of `directory`, which must be writable.
    pub(super) fn open(directory: &Path, limit_bytes: Option<u64>) -> io::Result<Self> {
        let ledger = directory.join(LEDGER);
        File::options().read(true).write(true).create(true).truncate(false).open(&ledger)?;
        Ok(Self(Arc::new(Inner { directory: directory.to_owned(), limit_bytes, ledger })))
    }

    /// Takes room for the file of `bytes` that `create` makes, and whose name says so ([`partial_name`]). `None` where
    /// there is no room to be had.
    pub(super) fn reserve<T>(
        &self,
        bytes: u64,
        create: impl FnOnce(Reserved) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        // Held until the file is there: whoever counts anew sees it.
        let mut lock = None;
        if let Some(limit) = self.0.limit_bytes {
            if bytes > limit {
                return Ok(None);
            }
            let Some(ledger) = self.lock()? else { return Ok(None) };
            let used = match read(&ledger) {
                Some(used) if used.saturating_add(bytes) <= limit => used,
                _ => self.make_room(limit - bytes, limit / SPARE_SHARE)?,
            };
            if used.saturating_add(bytes) > limit {
                return Ok(None);
            }
            write(&ledger, used + bytes)?;
            lock = Some(ledger);
        }
        let created = create(Reserved { space: self.clone(), bytes });
        drop(lock);
        created.map(Some)
    }

    /// A block went without having been counted: the sum is worked out anew when it matters.
    pub(super) fn miscounted(&self) {
        if let Ok(Some(ledger)) = self.lock() {
            let _ = ledger.set_len(0);
        }
    }

    fn lock(&self) -> io::Result<Option<File>> {
        let ledger = File::options().read(true).write(true).create(true).truncate(false).open(&self.0.ledger)?;
        for _ in 0..TRIES {
            match flock(&ledger, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(ledger)),
                Err(Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(None)
    }

    /// Counts what is there and gives up blocks until at most `most` bytes are left, `spare` fewer where that takes
    /// any; returns what is left.
    fn make_room(&self, most: u64, spare: u64) -> io::Result<u64> {
        let (mut blocks, mut used) = (Vec::new(), 0_u64);
        let now = SystemTime::now();
        for entry in fs::read_dir(&self.0.directory)?.flatten() {
            let path = entry.path();
            let kind = path.extension().and_then(|extension| extension.to_str());
            // Gone since: somebody else makes room.
            let Ok(metadata) = entry.metadata() else { continue };
            let modified = metadata.modified().unwrap_or(now);
            match kind {
                Some(PARTIAL) if now.duration_since(modified).is_ok_and(|age| age > ABANDONED) => {
                    let _ = fs::remove_file(&path);
                }
                // Not whole yet, and already counted: at least as much as it will be.
                Some(PARTIAL) => used += metadata.len().max(claimed_bytes(&path)),
                Some(COMPLETE) => {
                    used += metadata.len();
                    blocks.push((modified, metadata.len(), path));
                }
                _ => {}
            }
        }
        if used > most {
            blocks.sort_unstable();
            for (_, bytes, path) in blocks {
                if used <= most.saturating_sub(spare) {
                    break;
                }
                if fs::remove_file(&path).is_ok() {
                    used -= bytes;
                }
            }
        }
        Ok(used)
    }
}

impl Reserved {
    /// Gives the file its name. False where that would have to wait: whoever counts must not meet it between two names.
    pub(super) fn rename(&self, partial: &Path, path: &Path) -> io::Result<bool> {
        let lock = self.space.0.limit_bytes.map(|_| self.space.lock()).transpose()?;
        match lock {
            Some(None) => Ok(false),
            _ => fs::rename(partial, path).map(|()| true),
        }
    }

    /// Removes the file that it was taken for, and the room is free again.
    pub(super) fn give_back(self, path: &Path) {
        // Without the lock the sum stays too large: it is worked out anew when it matters.
        let ledger = self.space.0.limit_bytes.and_then(|_| self.space.lock().ok().flatten());
        let removed = fs::remove_file(path);
        if let Some(ledger) = ledger
            && removed.is_ok()
            && let Some(used) = read(&ledger)
        {
            let _ = write(&ledger, used.saturating_sub(self.bytes));
        }
    }
}

/// The name of a file that is to have `bytes`.
pub(super) fn partial_name(bytes: u64) -> String {
    // Processes in containers share numbers: a random one tells them apart.
    format!("{:016x}-{bytes}.{PARTIAL}", rand::random::<u64>())
}

fn claimed_bytes(path: &Path) -> u64 {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.rsplit('-').next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
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

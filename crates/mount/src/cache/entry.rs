//! The files of one version: its bytes in one sparse file, and their checksums in a file beside it.
//!
//! Several processes may have them open at once. A piece is written in place, and recorded once it is complete: a
//! process that finds no record, or bytes that do not match it, fetches the piece and writes it again. Two processes that
//! fetch the same piece write the same bytes. Bytes are never removed from a data file, as another process may read it.
//!
//! Once this process has written or verified every piece, and no other process has changed the file meanwhile, it is
//! sealed ([`super::seal`]) and may be read without checks.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use crc32fast::Hasher;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{FallocateFlags, FlockOperation, RenameFlags, fallocate, flock, renameat_with};
use rustix::io::Errno;

use super::seal::{Seal, unsettled};
use super::sidecar::{Record, Sidecar};
use super::space::{PAGE_BYTES, partial_name};
use super::version::{CHECKS, DATA, Version};

/// Attempts to seal a file that another process keeps changing.
const SEAL_TRIES: usize = 5;

/// Open options for files of the cache: never through a symbolic link, which another user of the directory could have
/// placed.
pub(super) fn options(writable: bool) -> OpenOptions {
    let mut options = File::options();
    // NONBLOCK keeps the open from hanging on a FIFO of the same name.
    options.read(true).write(writable).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// The open files of a version. While they are open, no process evicts them.
pub(super) struct Entry {
    version: Version,
    data: Arc<File>,
    sidecar: Sidecar,
    writable: bool,
    state: Mutex<Knowledge>,
    /// Held by the thread that seals the file.
    sealing: Mutex<()>,
}

/// Knowledge of the pieces as this process knows it.
struct Knowledge {
    /// Pieces that this process has written or verified.
    good: Vec<bool>,
    missing: usize,
    /// Fetches that are writing.
    filling: usize,
    /// Fetches among `filling` whose bytes are complete.
    filled: usize,
    /// Metadata at the last check, or after this process's last write; `None` while it writes. A difference means that
    /// another process has changed the file.
    seen: Option<Seal>,
    sealed: bool,
    /// Number of times that all knowledge was discarded. A verification that began before the last time does not count.
    voided: u64,
}

impl Knowledge {
    fn forget(&mut self) {
        self.voided += 1;
        self.good.fill(false);
        self.missing = self.good.len();
        self.sealed = false;
    }

    fn found(&mut self, pieces: &Range<u64>) {
        for good in &mut self.good[pieces.start as usize..pieces.end as usize] {
            self.missing -= usize::from(!*good);
            *good = true;
        }
    }
}

/// Result of reading pieces.
pub(super) struct Found {
    /// First piece that was not passed on.
    pub(super) next: u64,
    /// Set if that piece was recorded and does not match its checksum.
    pub(super) is_damaged: bool,
}

impl Entry {
    /// Opens the files of `version` in `directory`. `None` if they do not exist or are being evicted.
    pub(super) fn open(directory: &Path, version: &Version) -> io::Result<Option<Self>> {
        let (data, checks) = (directory.join(version.file_name(DATA)), directory.join(version.file_name(CHECKS)));
        let opened = |writable| Ok((options(writable).open(&data)?, Sidecar::open(&checks, writable)?, writable));
        let opened: io::Result<_> = opened(true).or_else(|error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => opened(false),
            _ => Err(error),
        });
        let (data, sidecar, writable) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // The shared lock marks the files as in use. A process that evicts takes it exclusively.
        match flock(&data, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        let metadata = data.metadata()?;
        // Unlinked between open and lock: an eviction won the race.
        if metadata.nlink() == 0 {
            return Ok(None);
        }
        // A file is renamed into place with its full length: another length is damage. Padding or cutting it is safe,
        // since every piece is verified before it is used.
        if writable && metadata.len() != version.size_bytes() {
            data.set_len(version.size_bytes())?;
        }
        sidecar.touch();
        let pieces = version.pieces() as usize;
        let state = Knowledge {
            good: vec![false; pieces],
            missing: pieces,
            filling: 0,
            filled: 0,
            seen: None,
            sealed: false,
            voided: 0,
        };
        let (state, sealing) = (Mutex::new(state), Mutex::default());
        Ok(Some(Self { version: version.clone(), data: Arc::new(data), sidecar, writable, state, sealing }))
    }

    /// Creates the files of `version` without any piece. Another process may do so at the same time.
    pub(super) fn create(directory: &Path, version: &Version) -> io::Result<Option<Self>> {
        let (partial, path) = (directory.join(partial_name()), directory.join(version.file_name(DATA)));
        let file = File::options().write(true).create_new(true).open(&partial)?;
        // Renamed into place, so that no process ever opens a data file of the wrong length.
        let named = file.set_len(version.size_bytes()).and_then(|()| rename_to_new(&partial, &path));
        if let Err(error) = named {
            let _ = std::fs::remove_file(&partial);
            // The other process's file is as good.
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
        }
        let entry = Self::open(directory, version)?;
        if let Some(entry) = &entry {
            allocate(entry.sidecar.file(), &(0..Sidecar::file_bytes(version)))?;
        }
        Ok(entry)
    }

    /// Disk space that the files of `version` take without any piece: the checksums, and a page for the file system's
    /// own extent list of a sparse file.
    pub(super) fn empty_bytes(version: &Version) -> u64 {
        Sidecar::file_bytes(version) + PAGE_BYTES
    }

    /// Returns whether another process has removed the data file: bytes written to it now would be lost.
    pub(super) fn is_gone(&self) -> bool {
        self.data.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Passes `pieces` to `sink` in order, each verified, up to the first that is missing or damaged.
    pub(super) fn read(
        &self,
        pieces: Range<u64>,
        buffer: &mut Vec<u8>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Found> {
        // Records before bytes: a piece that another process rewrites in between fails its checksum and is fetched
        // again.
        let records = self.sidecar.records(&self.version, &pieces)?;
        let voided = self.look()?;
        let mut found = Found { next: pieces.start, is_damaged: false };
        for record in records {
            let sum = match record {
                Record::Sum(sum) => sum,
                Record::Absent => break,
                Record::Damaged => {
                    found.is_damaged = true;
                    break;
                }
            };
            let bytes = self.version.bytes_of(&(found.next..found.next + 1));
            buffer.resize((bytes.end - bytes.start) as usize, 0);
            match self.data.read_exact_at(buffer, bytes.start) {
                Ok(()) if crc32fast::hash(buffer) == sum => sink(buffer),
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
                _ => {
                    found.is_damaged = true;
                    break;
                }
            }
            found.next += 1;
        }
        // The result counts only if the file was not changed by another process while it was read.
        let mut state = self.lock();
        if state.voided == voided {
            state.found(&(pieces.start..found.next));
        }
        drop(state);
        Ok(found)
    }

    /// Checks whether another process has changed the data file since the last call, and discards all knowledge if so.
    /// Returns the number of times that this happened.
    fn look(&self) -> io::Result<u64> {
        let mut state = self.lock();
        // While this process writes, its own changes cannot be told from those of others.
        if state.filling == 0 {
            let now = Seal::of(&self.data.metadata()?);
            if state.seen.is_some() && state.seen != now {
                state.forget();
            }
            state.seen = now;
        }
        Ok(state.voided)
    }

    /// Begins to write `pieces`, for which space is reserved.
    pub(super) fn fill(self: &Arc<Self>, pieces: Range<u64>) -> io::Result<Filling> {
        let bytes = self.version.bytes_of(&pieces);
        self.look()?;
        let mut state = self.lock();
        state.filling += 1;
        state.seen = None;
        state.sealed = false;
        drop(state);
        let (entry, position, end) = (Arc::clone(self), bytes.start, bytes.end);
        let filling =
            Filling { entry, pieces, position, end, hasher: Hasher::new(), sums: Vec::new(), is_filled: false };
        // After `filling` was counted: from this first write on, the metadata changes.
        allocate(&self.data, &bytes)?;
        Ok(filling)
    }

    /// Returns whether the bytes of a fetch are complete and not recorded yet.
    pub(super) fn is_about_to_be_recorded(&self) -> bool {
        self.lock().filled > 0
    }

    /// Returns whether this process has verified all pieces and has not sealed the file.
    pub(super) fn is_ripe(&self) -> bool {
        let state = self.lock();
        self.writable && state.missing == 0 && state.filling == 0 && !state.sealed
    }

    /// Seals the file: records its metadata as that of verified bytes. Waits for a clock tick, so that any later change
    /// would show in `ctime`.
    pub(super) fn seal(&self) -> io::Result<()> {
        // One thread at a time: the others find the file sealed.
        let _alone = self.sealing.lock();
        for _ in 0..SEAL_TRIES {
            if !self.is_ripe() {
                return Ok(());
            }
            let mut state = self.lock();
            let metadata = self.data.metadata()?;
            // Within one tick of `ctime`, a later write would leave the same metadata. The state's lock is not held
            // meanwhile.
            if let Some(rest) = unsettled(&metadata) {
                drop(state);
                std::thread::sleep(rest);
                continue;
            }
            let Some(now) = Seal::of(&metadata).filter(|_| metadata.len() == self.version.size_bytes()) else {
                return Ok(());
            };
            // Changed since the pieces were verified: they must be verified again.
            if state.seen.is_some_and(|seen| seen != now) {
                state.forget();
            }
            if state.missing == 0 && state.filling == 0 {
                if self.sidecar.seal(&self.version) != Some(now) {
                    self.sidecar.set_seal(&self.version, &now)?;
                }
                state.seen = Some(now);
                state.sealed = true;
            }
            return Ok(());
        }
        Ok(())
    }

    /// The data file if it is sealed and unchanged.
    pub(super) fn whole(&self) -> Option<Arc<File>> {
        let metadata = self.data.metadata().ok()?;
        let seal = self.sidecar.seal(&self.version)?;
        let is_whole = metadata.len() == self.version.size_bytes() && Seal::of(&metadata) == Some(seal);
        is_whole.then(|| Arc::clone(&self.data))
    }

    /// Locks the state. The lock is held for moments.
    fn lock(&self) -> MutexGuard<'_, Knowledge> {
        self.state.lock()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Without a seal, the next reader verifies every piece; nothing else is lost.
        let _ = self.seal();
        if self.writable {
            self.sidecar.touch();
        }
    }
}

/// Pieces that are being written to the data file. If dropped before [`Filling::finish`], none of them is recorded.
pub(super) struct Filling {
    entry: Arc<Entry>,
    pieces: Range<u64>,
    position: u64,
    end: u64,
    hasher: Hasher,
    sums: Vec<u32>,
    is_filled: bool,
}

impl Filling {
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > self.end - self.position {
            return Err(io::Error::other("more bytes came than were asked for"));
        }
        // Written before they are verified: the record, which makes a piece visible, comes last.
        self.entry.data.write_all_at(bytes, self.position)?;
        while !bytes.is_empty() {
            let piece = self.pieces.start + self.sums.len() as u64;
            let piece_end = self.entry.version.bytes_of(&(piece..piece + 1)).end;
            let (now, later) = bytes.split_at((bytes.len() as u64).min(piece_end - self.position) as usize);
            self.hasher.update(now);
            self.position += now.len() as u64;
            if self.position == piece_end {
                self.sums.push(std::mem::take(&mut self.hasher).finalize());
            }
            bytes = later;
        }
        // Counted once, so that the end of a job knows that only the record is missing.
        if self.position == self.end && !self.is_filled {
            self.is_filled = true;
            self.entry.lock().filled += 1;
        }
        Ok(())
    }

    /// Records the pieces if all bytes came. No sync is needed: whatever a power failure leaves is verified before use.
    pub(super) fn finish(self) -> io::Result<Arc<Entry>> {
        if self.is_filled {
            self.entry.sidecar.record(&self.entry.version, self.pieces.start, &self.sums)?;
            self.entry.lock().found(&self.pieces);
        }
        Ok(Arc::clone(&self.entry))
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        let mut state = self.entry.lock();
        state.filling -= 1;
        state.filled -= usize::from(self.is_filled);
        if state.filling == 0 {
            // From here on, any change of the metadata was made by another process.
            state.seen = self.entry.data.metadata().ok().and_then(|metadata| Seal::of(&metadata));
        }
    }
}

/// Renames a file to a name that must not exist yet.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system supports NOREPLACE. If two processes race then, the loser's pieces fail their
        // checksums.
        Err(Errno::INVAL | Errno::NOSYS) if !to.exists() => std::fs::rename(from, to),
        Err(Errno::INVAL | Errno::NOSYS) => Err(io::ErrorKind::AlreadyExists.into()),
        result => Ok(result?),
    }
}

/// Allocates the blocks of `bytes`, so that a process that counts used space sees them. Changes no byte.
fn allocate(file: &File, bytes: &Range<u64>) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), bytes.start, bytes.end - bytes.start) {
        // Without fallocate, blocks are allocated by the writes.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

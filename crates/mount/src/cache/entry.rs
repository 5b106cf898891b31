//! The files of one version: its bytes in one sparse file, and beside it what is known of them.
//!
//! Several processes may have them open at once. A piece is written in place, and recorded once all of its bytes are:
//! whoever finds no record, or bytes that are not the recorded ones, fetches the piece and writes it again. Two that
//! fetch the same piece write the same bytes. Nothing is ever taken out of a data file: somebody may be reading it.
//!
//! Once this process has written or checked every piece, and nobody else has changed the file meanwhile, it is
//! sealed ([`super::seal`]), and may be read as it is.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crc32fast::Hasher;
use rustix::fs::{FallocateFlags, FlockOperation, RenameFlags, fallocate, flock, renameat_with};
use rustix::io::Errno;

use super::seal::{Seal, unsettled};
use super::sidecar::{Record, Sidecar};
use super::space::{PAGE_BYTES, partial_name};
use super::version::{CHECKS, DATA, Version};

/// How often a file that somebody is still changing is looked at before it is left unsealed.
const SEAL_TRIES: usize = 5;

/// How a file of the cache is opened: never through a link, which another user of the directory could have put there.
pub(super) fn options(writable: bool) -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(writable).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// The open files of a version. While they are open nobody gives them up.
pub(super) struct Entry {
    version: Version,
    data: Arc<File>,
    sidecar: Sidecar,
    writable: bool,
    state: Mutex<State>,
    /// Held while it is being sealed.
    sealing: Mutex<()>,
}

/// What this process knows of the bytes.
struct State {
    /// The pieces that it has written or checked.
    good: Vec<bool>,
    missing: usize,
    /// Fetches that are writing.
    filling: usize,
    /// Those of them that have all of their bytes.
    filled: usize,
    /// How the file looked at the last check, or after this process's last write; nothing while it writes. Whoever finds
    /// it changed knows that somebody else did.
    seen: Option<Seal>,
    sealed: bool,
    /// How often all of it was void: a check that began before the last time says nothing.
    voided: u64,
}

impl State {
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

/// What came of reading pieces.
pub(super) struct Found {
    /// The first piece that was not handed on.
    pub(super) next: u64,
    /// It was there once.
    pub(super) is_damaged: bool,
}

impl Entry {
    /// The files of `version` in `directory`. `None` where there are none, or where they are being given up.
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
        match flock(&data, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        let metadata = data.metadata()?;
        if metadata.nlink() == 0 {
            return Ok(None);
        }
        // It has its length before it has its name: anything else is damage. What is beyond the end is nobody's, and what
        // was cut off is not there any more.
        if writable && metadata.len() != version.size_bytes() {
            data.set_len(version.size_bytes())?;
        }
        sidecar.touch();
        let pieces = version.pieces() as usize;
        let state = State {
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

    /// Makes the files of `version`, with nothing in them. Somebody else may do so at the same time.
    pub(super) fn create(directory: &Path, version: &Version) -> io::Result<Option<Self>> {
        let (partial, path) = (directory.join(partial_name()), directory.join(version.file_name(DATA)));
        let file = File::options().write(true).create_new(true).open(&partial)?;
        let named = file.set_len(version.size_bytes()).and_then(|()| rename_to_new(&partial, &path));
        if let Err(error) = named {
            let _ = std::fs::remove_file(&partial);
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

    /// Bytes that the files of `version` take beside what is in them: the checks, and a page of the file system's own, in
    /// which it notes where the parts of a file lie that did not come in order.
    pub(super) fn empty_bytes(version: &Version) -> u64 {
        Sidecar::file_bytes(version) + PAGE_BYTES
    }

    /// Somebody has removed the data file: what is written to it now is of no use.
    pub(super) fn is_gone(&self) -> bool {
        self.data.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Hands `pieces` to `sink` in order, each checked, up to the first that is not there.
    pub(super) fn read(
        &self,
        pieces: Range<u64>,
        buffer: &mut Vec<u8>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Found> {
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
        let mut state = self.lock();
        if state.voided == voided {
            state.found(&(pieces.start..found.next));
        }
        drop(state);
        Ok(found)
    }

    /// Looks whether somebody else has changed the data file since this was called last. Then what is known of it is void;
    /// returns how often it was.
    fn look(&self) -> io::Result<u64> {
        let mut state = self.lock();
        if state.filling == 0 {
            let now = Seal::of(&self.data.metadata()?);
            if state.seen.is_some() && state.seen != now {
                state.forget();
            }
            state.seen = now;
        }
        Ok(state.voided)
    }

    /// Begins to write `pieces`, for which there is room.
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
        // The first change of ours.
        allocate(&self.data, &bytes)?;
        Ok(filling)
    }

    /// Whether all bytes of a fetch are here, and are not recorded.
    pub(super) fn is_about_to_be_recorded(&self) -> bool {
        self.lock().filled > 0
    }

    /// Whether this process knows all of it, and has not said so.
    pub(super) fn is_ripe(&self) -> bool {
        let state = self.lock();
        self.writable && state.missing == 0 && state.filling == 0 && !state.sealed
    }

    /// Says that all of it is right as it is now. Waits for a moment, so that any change after that would show.
    pub(super) fn seal(&self) -> io::Result<()> {
        let _alone = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..SEAL_TRIES {
            if !self.is_ripe() {
                return Ok(());
            }
            let mut state = self.lock();
            let metadata = self.data.metadata()?;
            if let Some(rest) = unsettled(&metadata) {
                drop(state);
                std::thread::sleep(rest);
                continue;
            }
            let Some(now) = Seal::of(&metadata).filter(|_| metadata.len() == self.version.size_bytes()) else {
                return Ok(());
            };
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

    /// The data file, if it is sealed.
    pub(super) fn whole(&self) -> Option<Arc<File>> {
        let metadata = self.data.metadata().ok()?;
        let seal = self.sidecar.seal(&self.version)?;
        let is_whole = metadata.len() == self.version.size_bytes() && Seal::of(&metadata) == Some(seal);
        is_whole.then(|| Arc::clone(&self.data))
    }

    /// Held for moments.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Where it fails the next reader checks every piece; no more than that.
        let _ = self.seal();
        if self.writable {
            self.sidecar.touch();
        }
    }
}

/// Pieces on their way into the data file. Dropped before it is finished, none of them is recorded.
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
        if self.position == self.end && !self.is_filled {
            self.is_filled = true;
            self.entry.lock().filled += 1;
        }
        Ok(())
    }

    /// Records the pieces, if all of their bytes came. They need not be on disk by then: whatever a power cut leaves is
    /// checked.
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
            // From here on every change is somebody else's.
            state.seen = self.entry.data.metadata().ok().and_then(|metadata| Seal::of(&metadata));
        }
    }
}

/// Gives a file a name that nobody has.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can. If somebody is faster, what one of both writes is found damaged.
        Err(Errno::INVAL | Errno::NOSYS) if !to.exists() => std::fs::rename(from, to),
        Err(Errno::INVAL | Errno::NOSYS) => Err(io::ErrorKind::AlreadyExists.into()),
        result => Ok(result?),
    }
}

/// Has the file system find room for `bytes` now, so that whoever counts what is used counts it. It changes no byte.
fn allocate(file: &File, bytes: &Range<u64>) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), bytes.start, bytes.end - bytes.start) {
        // Where it cannot, room is found as bytes are written.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

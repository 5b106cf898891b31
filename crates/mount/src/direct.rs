//! Files of a mount read without a detour through its kernel side: from the block map, or from the disk cache's own
//! file where that holds all of it.
//!
//! For the model loader: its reads are large, it says how far each goes, and it needs no second copy of the
//! bytes in the page cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::blocks::{BlockMap, Bytes, Read};
use super::filesystem::FileSystem;
use super::tree::Inode;

/// The files of a mount, to be opened without the kernel. Cheap to clone; after the mount's end every read of the block
/// map fails.
#[derive(Clone)]
pub struct DirectFiles {
    location: PathBuf,
    files: FileSystem,
}

impl DirectFiles {
    pub(super) fn new(location: PathBuf, files: FileSystem) -> Self {
        Self { location, files }
    }

    /// The file at `path` (absolute, or relative to the location). `None` where this mount has no such file.
    pub fn open(&self, path: &Path) -> Option<DirectFile> {
        let relative = if path.is_absolute() { path.strip_prefix(&self.location).ok()? } else { path };
        self.files.open_direct(relative).ok()
    }
}

/// An open file. Any number of threads may read it at once; they must be threads that may block.
pub struct DirectFile {
    blocks: BlockMap,
    inode: Inode,
    size_bytes: u64,
    /// The same bytes in a local file.
    whole: Option<Arc<File>>,
    /// Set once the local file has failed; reads then use the block map.
    failed: AtomicBool,
}

impl DirectFile {
    /// Takes over one open of `inode`.
    pub(super) fn new(blocks: BlockMap, inode: Inode, size_bytes: u64, whole: Option<Arc<File>>) -> Self {
        Self { blocks, inode, size_bytes, whole, failed: AtomicBool::new(false) }
    }

    /// Returns whether the file is read from a local disk.
    pub fn is_local(&self) -> bool {
        self.whole.is_some()
    }

    /// Length of the file, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Announces that `range` will be read, after all ranges announced before for any file of the mount.
    pub fn will_read(&self, range: Range<u64>) {
        if self.whole.is_some() {
            return;
        }
        self.blocks.will_read(self.inode, range);
    }

    /// Fills `buffer` with the bytes from `offset` on. All of them are on their way as soon as this begins, as
    /// far as memory and the number of connections allow.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends before, else the kind of the fault's errno with the [`Fault`](super::Fault) inside.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = self.within(offset..offset.saturating_add(buffer.len() as u64))?.end;
        if let Some(whole) = &self.whole
            && !self.failed.load(Ordering::Relaxed)
        {
            match whole.read_exact_at(buffer, offset) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    tracing::warn!(%error, "a file of the disk cache cannot be read: its blocks are asked for instead");
                }
            }
        }
        let block_bytes = self.blocks.limits().block_bytes as u64;
        let (mut position, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            // Block by block, so that none is held while another one is waited for.
            let piece_end = end.min((position / block_bytes + 1) * block_bytes);
            let bytes = self.wait_for(position..piece_end, end)?;
            let (filled, unfilled) = rest.split_at_mut(bytes.len());
            filled.copy_from_slice(&bytes);
            rest = unfilled;
            position = piece_end;
        }
        Ok(())
    }

    /// The bytes of `range` where the block map has them, waited for if need be; `None` where they lie in several blocks or
    /// on a local disk. Memory is not given to anything else while they are held.
    ///
    /// # Errors
    /// As [`DirectFile::read_exact_at`].
    pub fn lend(&self, range: Range<u64>) -> io::Result<Option<Bytes>> {
        let range = self.within(range)?;
        let block_bytes = self.blocks.limits().block_bytes as u64;
        let in_one_block = range.start / block_bytes == range.end.saturating_sub(1) / block_bytes;
        if self.whole.is_some() || !in_one_block {
            return Ok(None);
        }
        let end = range.end;
        Ok(Some(self.wait_for(range, end)?))
    }

    fn within(&self, range: Range<u64>) -> io::Result<Range<u64>> {
        if range.end > self.size_bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(range) }
    }

    /// Waits for `range`, which lies in one block; the reader goes on to `promised`.
    fn wait_for(&self, range: Range<u64>, promised: u64) -> io::Result<Bytes> {
        let bytes = match self.blocks.read(self.inode, range, promised) {
            Read::Ready(result) => result,
            // Blocks this thread until the fetch task wakes it directly; a hop over another thread would cost
            // microseconds for each block.
            // On this thread: the thread that brings the bytes wakes it, and no other one on the way.
            Read::Waiting(future) => self.blocks.runtime().block_on(future),
        };
        Ok(bytes?)
    }
}

impl Drop for DirectFile {
    fn drop(&mut self) {
        self.blocks.close(self.inode);
    }
}

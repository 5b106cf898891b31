//! Bytes at an offset: all that weights need of the place where they are stored.
//!
//! A file is one such place; a mount's block map can be another, without a detour through the kernel.

use std::fs::File;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes that stay where they are for as long as this lives.
pub type Lent<'a> = Box<dyn Deref<Target = [u8]> + 'a>;

/// Something of a fixed size that any thread may read at any offset.
pub trait ReadAt: Send + Sync {
    /// Length in bytes.
    fn size_bytes(&self) -> std::io::Result<u64>;

    /// Fills `buffer` with the bytes from `offset` on, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()>;

    /// The bytes of `range` where they lie, waited for if need be. `None` where they do not lie in memory side by side:
    /// they are to be had from [`Self::read_exact_at`] then.
    fn lend(&self, _range: Range<u64>) -> std::io::Result<Option<Lent<'_>>> {
        Ok(None)
    }

    /// Says that `range` will be read, once, after everything that was said before: a place that is far away may
    /// begin to fetch it.
    fn will_read(&self, _range: Range<u64>) {}
}

/// Opens files that contain weights.
pub trait Files: Sync {
    /// Opens the file at `path`.
    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn ReadAt>>;
}

/// Files of the system, by their paths.
pub struct SystemFiles;

impl Files for SystemFiles {
    fn open(&self, path: &Path) -> std::io::Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(File::open(path)?))
    }
}

impl ReadAt for File {
    fn size_bytes(&self) -> std::io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn size_bytes(&self) -> std::io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part(self, offset..end)?);
        Ok(())
    }

    fn lend(&self, range: Range<u64>) -> std::io::Result<Option<Lent<'_>>> {
        Ok(Some(Box::new(part(self, range)?)))
    }
}

fn part(bytes: &[u8], range: Range<u64>) -> std::io::Result<&[u8]> {
    let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
    bytes.get(start..end).ok_or(std::io::ErrorKind::UnexpectedEof.into())
}

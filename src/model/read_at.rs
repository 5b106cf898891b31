//! Bytes at an offset: all that weights need of the place where they are stored.
//!
//! A file is one such place; a mount's block map can be another, without a detour through the kernel.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Something of a fixed size that any thread may read at any offset.
pub trait ReadAt: Send + Sync {
    /// How many bytes there are.
    fn size_bytes(&self) -> std::io::Result<u64>;

    /// Fills `buffer` with the bytes from `offset` on, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()>;

    /// Says that `range` will be read, once, after everything that was said before: a place that is far away may
    /// begin to fetch it.
    fn will_read(&self, _range: Range<u64>) {}
}

/// Where the files that hold weights are opened.
pub trait Files {
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
        let start = usize::try_from(offset).ok();
        let found = start.and_then(|start| self.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(found.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

//! Weights under our own mount, read straight from its block map or its disk cache.
//!
//! The kernel would copy each byte twice more, and could not be told what will be read next.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use flashjob_model::{Files, Lent, ReadAt, SystemFiles};
use flashjob_mount::{DirectFile, DirectFiles};

/// The mounts of a run; what lies under none of them is opened by its path.
pub struct MountedFiles(Vec<DirectFiles>);

impl MountedFiles {
    /// Files of `mounts`.
    pub fn new(mounts: Vec<DirectFiles>) -> Self {
        Self(mounts)
    }
}

impl Files for MountedFiles {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadAt>> {
        // Mounts are at absolute paths, so that a relative one is never inside of them.
        let found = path.is_absolute().then(|| self.0.iter().find_map(|mount| mount.open(path))).flatten();
        match found {
            Some(file) => {
                let origin = if file.is_local() { "a whole file of the disk cache" } else { "the mount's block map" };
                tracing::info!(path = %path.display(), "weights are read from {origin}");
                Ok(Arc::new(Direct(file)))
            }
            None => SystemFiles.open(path),
        }
    }
}

/// A file of a mount.
struct Direct(DirectFile);

impl ReadAt for Direct {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.0.size_bytes())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn lend(&self, range: Range<u64>) -> io::Result<Option<Lent<'_>>> {
        Ok(self.0.lend(range)?.map(|bytes| Box::new(bytes) as Lent<'_>))
    }

    fn will_read(&self, range: Range<u64>) {
        self.0.will_read(range);
    }
}

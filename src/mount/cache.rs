//! Blocks kept on a local disk between runs, and shared by all processes of a machine.
//!
//! A [`BlockSource`] in front of another one. A file holds one whole block of one version of one object, with a
//! checksum over all of it; it gets its name once it is complete, so nobody ever meets half a block, whoever was
//! killed. What does not check out is removed and fetched again, never handed on. The cache may only ever make things
//! faster: whatever its disk does (full, read-only, gone), bytes come from behind it.

mod entry;
mod space;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use self::entry::{Key, Pending};
use self::space::Space;
use super::source::{BlockSource, Reading, Sink};
use crate::bucket::Object;

/// Blocks that are read back and checked at a time: each takes memory beside the block map's.
const CHECKED_AT_A_TIME: usize = 2;

/// A source whose blocks stay on disk.
pub struct DiskCache {
    source: Arc<dyn BlockSource>,
    disk: Arc<Disk>,
}

/// The part that works on threads that may block.
struct Disk {
    directory: PathBuf,
    space: Option<Space>,
    /// Memory of blocks that were read back, for the next ones.
    buffers: Mutex<Vec<Vec<u8>>>,
    permits: Semaphore,
    /// A fault of the disk was logged: once is enough.
    complained: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
    spoiled: AtomicU64,
}

impl DiskCache {
    /// A cache in `directory`, which is created if need be, of at most `limit_bytes` together with whatever other
    /// processes keep there.
    ///
    /// # Errors
    /// Where the directory neither is there nor can be made. One that cannot be written is read all the same.
    pub fn open(directory: &Path, limit_bytes: Option<u64>, source: Arc<dyn BlockSource>) -> io::Result<Self> {
        let directory = directory.join("flashjob-blocks");
        match fs::create_dir_all(&directory) {
            Err(_) if directory.is_dir() => {}
            made => made?,
        }
        let space = Space::open(&directory, limit_bytes);
        let space = space.inspect_err(|error| {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "cache-dir cannot be written: blocks are only read from it");
        });
        let disk = Disk {
            directory,
            space: space.ok(),
            buffers: Mutex::default(),
            permits: Semaphore::new(CHECKED_AT_A_TIME),
            complained: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            spoiled: AtomicU64::new(0),
        };
        Ok(Self { source, disk: Arc::new(disk) })
    }

    /// Blocks that came from the disk, and blocks that did not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.disk.hits.load(Ordering::Relaxed), self.disk.misses.load(Ordering::Relaxed))
    }

    async fn read_through(
        &self,
        object: &Object,
        range: Range<u64>,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<(), super::Fault> {
        let Some(key) = Key::of(object, &range) else {
            return self.source.read(object, range, &mut |piece| sink(piece)).await;
        };
        if let Some(buffer) = self.disk.find(&key).await {
            sink(&buffer);
            self.disk.give_back(buffer);
            self.disk.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.disk.misses.fetch_add(1, Ordering::Relaxed);
        let mut pending = self.disk.begin(&key).await;
        let mut failure = None;
        let mut tee = |piece: &[u8]| {
            if let Some(entry) = &mut pending
                && let Err(error) = entry.append(piece)
            {
                failure = Some(error);
                pending = None;
            }
            sink(piece);
        };
        let result = self.source.read(object, range, &mut tee).await;
        if let Some(error) = failure {
            self.disk.complain(&error);
        }
        if result.is_ok()
            && let Some(entry) = pending
        {
            self.disk.finish(entry).await;
        }
        result
    }
}

impl BlockSource for DiskCache {
    fn read<'a>(&'a self, object: &'a Object, range: Range<u64>, sink: &'a mut Sink<'a>) -> Reading<'a> {
        Box::pin(self.read_through(object, range, sink))
    }

    fn throttled(&self) -> u64 {
        self.source.throttled()
    }

    fn connections(&self) -> usize {
        self.source.connections()
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        let (hits, misses) = self.hits_and_misses();
        let (directory, spoiled) = (self.disk.directory.display(), self.disk.spoiled.load(Ordering::Relaxed));
        tracing::info!(%directory, hits, misses, spoiled, "blocks from the disk cache");
    }
}

impl Disk {
    /// The bytes of a block, checked.
    async fn find(self: &Arc<Self>, key: &Key) -> Option<Vec<u8>> {
        let _permit = self.permits.acquire().await.ok()?;
        let (disk, key) = (Arc::clone(self), key.clone());
        tokio::task::spawn_blocking(move || disk.read_back(&key)).await.ok()?
    }

    fn read_back(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.directory.join(key.file_name());
        let mut buffer = self.lock_buffers().pop().unwrap_or_default();
        match entry::read(&path, key, &mut buffer) {
            Ok(true) => return Some(buffer),
            Ok(false) => {
                self.spoiled.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(path = %path.display(), "a cached block is damaged: it is fetched again");
                if fs::remove_file(&path).is_ok()
                    && let Some(space) = &self.space
                {
                    space.miscounted();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.complain(&error),
        }
        self.give_back(buffer);
        None
    }

    /// Makes room for a block and a file to write it to.
    async fn begin(self: &Arc<Self>, key: &Key) -> Option<Pending> {
        self.space.as_ref()?;
        let (disk, key) = (Arc::clone(self), key.clone());
        let begun = tokio::task::spawn_blocking(move || {
            let space = disk.space.as_ref()?;
            let create = |reserved| Pending::create(&disk.directory, key.clone(), reserved);
            space.reserve(key.file_bytes(), create).unwrap_or_else(|error| {
                disk.complain(&error);
                None
            })
        });
        begun.await.ok()?
    }

    async fn finish(self: &Arc<Self>, entry: Pending) {
        let disk = Arc::clone(self);
        let finished = tokio::task::spawn_blocking(move || {
            if let Err(error) = entry.finish() {
                disk.complain(&error);
            }
        });
        // Only fails to return where the runtime ends.
        let _ = finished.await;
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut buffers = self.lock_buffers();
        if buffers.len() < CHECKED_AT_A_TIME {
            buffers.push(buffer);
        }
    }

    fn lock_buffers(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complain(&self, error: &io::Error) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            let directory = self.directory.display();
            tracing::warn!(%directory, %error, "the disk cache fails: blocks come from the bucket instead");
        }
    }
}

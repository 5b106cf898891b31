//! Bytes kept on a local disk between runs, and shared by all processes of a machine.
//!
//! A [`BlockSource`] in front of another one. A sparse file holds one version of one object ([`entry`]), with a
//! CRC-32 for each of its pieces in a file beside it ([`sidecar`]); a piece without a record, or with another checksum, is
//! fetched again and never delivered. A file that is complete and verified is sealed ([`seal`]) and can be read directly,
//! by the kernel too. The cache never causes a failure: if its disk is full, read-only or gone, bytes come from the
//! source behind it.

mod entry;
mod seal;
mod sidecar;
mod space;
mod version;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

use self::entry::{Entry, Filling};
use self::space::Space;
use self::version::Version;
use super::source::{BlockSource, Fault, Reading, Sink};
use flashjob_bucket::Object;

/// The length of a piece: no block of a map is shorter, so all of them are whole pieces. Small enough for the second
/// look at its bytes, and the copy, to find them in a processor's cache.
pub const PIECE_BYTES: u64 = 1 << 20;

/// Name of the cache's directory, below `cache-dir`.
const DIRECTORY: &str = "flashjob-files";
/// Directory name of a former layout, which is removed.
const OLD_DIRECTORY: &str = "flashjob-blocks";
/// Blocks that are read back and checked at a time.
const CHECKED_AT_A_TIME: usize = 4;
/// Versions whose files stay open, with two descriptors each.
const MOST_OPEN: usize = 128;
/// Longest wait at the end for pieces that have arrived and are not recorded yet.
const LONGEST_END: Duration = Duration::from_secs(1);

/// A source whose bytes are kept on disk.
pub struct DiskCache {
    source: Arc<dyn BlockSource>,
    disk: Arc<Disk>,
}

/// The blocking part: file access, run on threads that may block.
struct Disk {
    directory: PathBuf,
    piece_bytes: u64,
    space: Option<Space>,
    open: Mutex<Open>,
    /// Reusable buffers for pieces that are read back.
    buffers: Mutex<Vec<Vec<u8>>>,
    permits: Semaphore,
    /// Set once a disk error was logged; later ones are not.
    complained: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
    spoiled: AtomicU64,
    whole: AtomicU64,
}

/// Open files by version, with the time of their last use: an LRU of descriptors.
#[derive(Default)]
struct Open {
    entries: HashMap<u128, (Arc<Entry>, u64)>,
    clock: u64,
}

impl DiskCache {
    /// A cache in `directory`, which is created if need be, of at most `limit_bytes` on disk together with whatever other
    /// processes keep there. What is read through it is whole pieces of `piece_bytes` ([`PIECE_BYTES`] outside of tests); a
    /// range that is not is handed through.
    ///
    /// # Errors
    /// Where the directory neither is there nor can be made. One that cannot be written is read all the same.
    pub fn open(
        directory: &Path,
        limit_bytes: Option<u64>,
        piece_bytes: u64,
        source: Arc<dyn BlockSource>,
    ) -> io::Result<Self> {
        remove_old_layout(&directory.join(OLD_DIRECTORY));
        let directory = directory.join(DIRECTORY);
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
            piece_bytes,
            space: space.ok(),
            open: Mutex::default(),
            buffers: Mutex::default(),
            permits: Semaphore::new(CHECKED_AT_A_TIME),
            complained: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            spoiled: AtomicU64::new(0),
            whole: AtomicU64::new(0),
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
    ) -> Result<(), Fault> {
        // Without an ETag a version has no identity, and cached bytes could be those of another version.
        let version = Version::of(object, self.disk.piece_bytes);
        let pieces = version.as_ref().and_then(|version| version.pieces_of(&range));
        let Some((version, pieces)) = version.zip(pieces) else {
            return self.source.read(object, range, &mut |piece| sink(piece)).await;
        };
        // Checked synchronously while a permit is held: CRC-32 and copies of many blocks at once would take all worker
        // threads.
        let (next, mut filling) = {
            let _permit = self.disk.permits.acquire().await;
            blocking(|| {
                let next = self.disk.read_back(&version, &pieces, sink);
                (next, (next < pieces.end).then(|| self.disk.begin(&version, next..pieces.end)).flatten())
            })
        };
        if next == pieces.end {
            self.disk.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.disk.misses.fetch_add(1, Ordering::Relaxed);
        // A disk that fails must not fail the read: writing stops, and the bytes still go to the reader.
        let mut failure = None;
        let mut tee = |piece: &[u8]| {
            if let Some(pieces) = &mut filling
                && let Err(error) = pieces.append(piece)
            {
                failure = Some(error);
                filling = None;
            }
            sink(piece);
        };
        let result = self.source.read(object, version.bytes_of(&(next..pieces.end)), &mut tee).await;
        if let Some(error) = failure {
            self.disk.complain(&error);
        }
        if result.is_ok()
            // Sealing syncs the file. Only a whole, verified one is sealed, and not on this path.
            && let Some(filling) = filling
        {
            match filling.finish() {
                Ok(entry) => self.disk.seal_if_ripe(entry),
                Err(error) => self.disk.complain(&error),
            }
        }
        result
    }
}

/// Runs what may wait for a disk on this thread, while another one takes over what else this one had to do. No second thread
/// has to see the bytes.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

impl BlockSource for DiskCache {
    fn read<'a>(&'a self, object: &'a Object, range: Range<u64>, sink: &'a mut Sink<'a>) -> Reading<'a> {
        Box::pin(self.read_through(object, range, sink))
    }

    fn whole(&self, object: &Object) -> Option<Arc<File>> {
        let version = Version::of(object, self.disk.piece_bytes)?;
        let file = self.disk.entry(&version)?.whole()?;
        self.disk.whole.fetch_add(1, Ordering::Relaxed);
        Some(file)
    }

    fn end(&self) {
        let entries = std::mem::take(&mut self.disk.lock_open().entries);
        let start = Instant::now();
        for (entry, _) in entries.into_values() {
            // Their readers have the last bytes already, so that this is over in a moment.
            while entry.is_about_to_be_recorded() && start.elapsed() < LONGEST_END {
                std::thread::sleep(Duration::from_millis(1));
            }
            if let Err(error) = entry.seal() {
                self.disk.complain(&error);
            }
        }
        self.source.end();
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
        let (spoiled, whole) = (self.disk.spoiled.load(Ordering::Relaxed), self.disk.whole.load(Ordering::Relaxed));
        let directory = self.disk.directory.display();
        tracing::info!(%directory, hits, misses, spoiled, whole_files = whole, "blocks from the disk cache");
    }
}

impl Disk {
    /// The files of `version`, if there are any.
    fn entry(&self, version: &Version) -> Option<Arc<Entry>> {
        let found = self.lock_open().get(version.number());
        if found.is_some() {
            return found;
        }
        match Entry::open(&self.directory, version) {
            Ok(entry) => entry.map(|entry| self.keep_open(version, entry)),
            Err(error) => {
                self.complain(&error);
                None
            }
        }
    }

    fn keep_open(&self, version: &Version, entry: Entry) -> Arc<Entry> {
        let (entry, closed) = self.lock_open().insert(version.number(), Arc::new(entry));
        // Without the lock: it may be sealed on the way.
        drop(closed);
        entry
    }

    /// Passes on the verified pieces among `pieces`, from the first on. Returns the first piece that is missing or
    /// damaged.
    fn read_back(
        self: &Arc<Self>,
        version: &Version,
        pieces: &Range<u64>,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> u64 {
        let Some(entry) = self.entry(version) else { return pieces.start };
        let mut buffer = self.lock_buffers().pop().unwrap_or_default();
        let mut next = pieces.start;
        let mut counted = |piece: &[u8]| {
            next += 1;
            sink(piece);
        };
        let found = entry.read(pieces.clone(), &mut buffer, &mut counted);
        self.lock_buffers().push(buffer);
        match found {
            Ok(found) if found.is_damaged => {
                self.spoiled.fetch_add(1, Ordering::Relaxed);
                let path = self.directory.join(version.file_name(version::DATA));
                tracing::warn!(path = %path.display(), piece = found.next, "a cached block is damaged: it is fetched again");
            }
            Ok(_) => self.seal_if_ripe(entry),
            Err(error) => self.complain(&error),
        }
        next
    }

    /// Reserves space for `pieces`, and creates files where there are none.
    fn begin(&self, version: &Version, pieces: Range<u64>) -> Option<Filling> {
        let space = self.space.as_ref()?;
        let mut entry = self.entry(version);
        // Another process may have evicted the files that are open here: bytes written to an unlinked file would be
        // lost.
        if entry.as_ref().is_some_and(|entry| entry.is_gone()) {
            self.lock_open().entries.remove(&version.number());
            entry = self.entry(version);
        }
        if entry.as_ref().is_some_and(|entry| !entry.is_writable()) {
            return None;
        }
        let empty = if entry.is_some() { 0..0 } else { 0..Entry::empty_bytes(version) };
        let begun = space.reserve(&[version.bytes_of(&pieces), empty], || {
            let entry = match entry {
                Some(entry) => Some(entry),
                None => Entry::create(&self.directory, version)?.map(|entry| self.keep_open(version, entry)),
            };
            entry.filter(|entry| entry.is_writable()).map(|entry| entry.fill(pieces)).transpose()
        });
        begun.unwrap_or_else(|error| {
            self.complain(&error);
            None
        })
    }

    /// Seals the file, in the background, once all of its pieces are verified.
    fn seal_if_ripe(self: &Arc<Self>, entry: Arc<Entry>) {
        if entry.is_ripe()
            && let Ok(runtime) = Handle::try_current()
        {
            let disk = Arc::clone(self);
            runtime.spawn_blocking(move || {
                if let Err(error) = entry.seal() {
                    disk.complain(&error);
                }
            });
        }
    }

    fn lock_open(&self) -> MutexGuard<'_, Open> {
        self.open.lock()
    }

    fn lock_buffers(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.buffers.lock()
    }

    fn complain(&self, error: &io::Error) {
        if !self.complained.swap(true, Ordering::Relaxed) {
            let directory = self.directory.display();
            tracing::warn!(%directory, %error, "the disk cache fails: blocks come from the bucket instead");
        }
    }
}

impl Open {
    fn get(&mut self, number: u128) -> Option<Arc<Entry>> {
        self.clock += 1;
        let (entry, used) = self.entries.get_mut(&number)?;
        *used = self.clock;
        Some(Arc::clone(entry))
    }

    /// Inserts `entry`, or returns the one that another thread inserted first; the second value is to be closed by the
    /// caller, without the lock.
    fn insert(&mut self, number: u128, entry: Arc<Entry>) -> (Arc<Entry>, Option<Arc<Entry>>) {
        if let Some(there) = self.get(number) {
            return (there, Some(entry));
        }
        // Linear search for the least recently used of at most 128.
        let oldest = self.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(&number, _)| number);
        let oldest = oldest.filter(|_| self.entries.len() >= MOST_OPEN);
        let closed = oldest.and_then(|oldest| self.entries.remove(&oldest)).map(|(entry, _)| entry);
        self.entries.insert(number, (Arc::clone(&entry), self.clock));
        (entry, closed)
    }
}

/// Removes the files of the first layout, one for each block, which no version would evict. Touches nothing else.
fn remove_old_layout(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_ours = path.extension().is_some_and(|kind| kind == "block" || kind == "partial")
            || path.file_name().is_some_and(|name| name == "used-bytes");
        if is_ours {
            let _ = fs::remove_file(path);
        }
    }
    match fs::remove_dir(directory) {
        Ok(()) => tracing::info!(directory = %directory.display(), "removed blocks of an older layout of the cache"),
        Err(error) => {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "an older layout of the cache cannot be removed: remove it by hand");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::Limits;
    use super::PIECE_BYTES;

    #[test]
    fn blocks_are_whole_pieces_whatever_the_budget_is() {
        for memory_mib in [0, 1, 8, 9, 31, 64, 512, 100_000] {
            assert_eq!(Limits::within(memory_mib << 20).block_bytes as u64 % PIECE_BYTES, 0, "{memory_mib} MiB");
        }
    }
}

//! The block map: the bytes of all open files, in blocks that are fetched once and shared by every reader.
//!
//! A file is a sequence of blocks of 8 MiB. A read finds its block present, in flight or absent, fetches it if it is
//! absent, and waits only for the bytes that it needs. Readahead fetches further blocks: for sequential readers
//! ([`streams`]), or in the order that a reader has announced ([`plan`]), up to an adaptive depth ([`readahead`]). One
//! memory budget ([`buffer`]) bounds all files together; blocks outside of every readahead window are evicted first. A
//! failed fetch leaves no block behind.
//!
//! It knows files by inode and bytes by [`BlockSource`], and nothing of kernels or of networks.

mod block;
mod buffer;
mod concurrency;
mod fetch;
mod plan;
mod read;
mod readahead;
mod streams;
mod table;

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;

use self::buffer::Memory;
use self::table::Table;
use super::source::{BlockSource, Fault, FaultKind};
use super::tree::Inode;
use flashjob_bucket::Object;

pub use self::read::{Bytes, Read};

/// Sizes and concurrency of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of a block, in bytes.
    pub block_bytes: usize,
    /// Memory for all blocks together.
    pub memory_bytes: usize,
    /// Fetches that readahead may run at a time; reads that wait for bytes may use as many again.
    pub fetches: usize,
    /// Largest readahead window of one stream, in blocks.
    pub window_blocks: usize,
}

impl Limits {
    /// Block size in bytes: at 8 MiB the latency of a request no longer counts beside its transfer.
    const BLOCK_BYTES: usize = 8 << 20;
    /// Smallest memory budget. Below it, blocks would be smaller than the kernel's requests.
    const LEAST_MEMORY_BYTES: usize = 8 << 20;

    /// Limits for a budget of `memory_bytes`, which is raised to 8 MiB. Small budgets get smaller blocks, so that there
    /// are always several.
    pub fn within(memory_bytes: u64) -> Self {
        let memory_bytes = usize::try_from(memory_bytes).unwrap_or(usize::MAX).max(Self::LEAST_MEMORY_BYTES);
        // A budget always holds at least eight blocks, and the block size is a power of two: the disk cache checks
        // whole pieces of 1 MiB, which then divide every block.
        let share = memory_bytes / 8;
        let block_bytes = Self::BLOCK_BYTES.min(1 << share.ilog2());
        Self { block_bytes, memory_bytes, fetches: 32, window_blocks: 64 }
    }
}

/// The blocks of all open files. Cheap to clone.
#[derive(Clone)]
pub struct BlockMap {
    shared: Arc<Shared>,
}

/// State that the map, its fetches and its readers share.
struct Shared {
    source: Arc<dyn BlockSource>,
    runtime: Handle,
    limits: Limits,
    memory: Arc<Memory>,
    table: Mutex<Table>,
    /// Set while a read waits for memory; dropping a block then starts fetches.
    starved: AtomicBool,
    first_fault: OnceLock<Fault>,
}

impl Shared {
    /// Locks the table. The lock is held for moments, never across a wait.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// Keeps the first fault that a reader got, for [`BlockMap::health`].
    fn report(&self, fault: &Fault) {
        // `Closed` is the normal end of a mount, not a fault to report. Only the first fault is logged: a broken
        // connection fails every read, and the first says why.
        if fault.kind() != FaultKind::Closed && self.first_fault.set(fault.clone()).is_ok() {
            tracing::error!(errno = ?fault.kind().errno(), "a file of the mount cannot be read: {fault}");
        }
    }
}

impl BlockMap {
    /// An empty map of what `source` has. Fetches run on `runtime`, as many as `source` has connections for at most.
    pub fn new(source: Arc<dyn BlockSource>, limits: Limits, runtime: Handle) -> Self {
        // More fetches than connections would only hold memory while they queue for one.
        let limits = Limits { fetches: limits.fetches.min(source.connections()).max(1), ..limits };
        let memory = Memory::new(limits.memory_bytes, limits.block_bytes);
        let shared = Shared {
            source,
            runtime,
            limits,
            memory,
            table: Mutex::new(Table::new(limits)),
            starved: AtomicBool::new(false),
            first_fault: OnceLock::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Makes a file readable until it is closed as often as it was opened.
    pub fn open(&self, inode: Inode, object: Object) {
        self.shared.lock().open(inode, object);
    }

    /// Takes back one [`BlockMap::open`]. Blocks stay in memory until their place is needed.
    pub fn close(&self, inode: Inode) {
        self.shared.lock().close(inode);
    }

    /// Begins to read `range` of an open file, cut off at its end. `promised` is the offset up to which the reader will
    /// certainly read on, or `range.end` where that is unknown.
    pub fn read(&self, inode: Inode, range: Range<u64>, promised: u64) -> Read {
        read::begin(&self.shared, inode, range, promised)
    }

    /// Announces that `range` of an open file will be read after all ranges announced before: it is fetched in that
    /// order, as far ahead as memory allows.
    pub fn will_read(&self, inode: Inode, range: Range<u64>) {
        self.shared.lock().will_read(inode, range);
        self.shared.start_fetches();
    }

    /// The local file that holds all of `object`, where its source has one: that can be read without a map of blocks.
    pub fn whole(&self, object: &Object) -> Option<Arc<File>> {
        self.shared.source.whole(object)
    }

    /// The first fault that any reader got.
    pub fn health(&self) -> Option<Fault> {
        self.shared.first_fault.get().cloned()
    }

    /// Fetches nothing more: readers that need anything get [`FaultKind::Closed`].
    pub fn shut(&self) {
        // In this order: new reads are refused before the source gives up what it still holds.
        self.shared.lock().shut();
        self.shared.source.end();
    }

    /// Bytes of memory in use now, and at the peak.
    pub fn memory_bytes(&self) -> (usize, usize) {
        self.shared.memory.held_and_peak_bytes()
    }

    /// The runtime on which fetches run.
    pub(super) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    /// The limits that the map was made with.
    pub fn limits(&self) -> Limits {
        self.shared.limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_the_budget() {
        for (memory_mib, block_kib) in [(0, 1024), (8, 1024), (32, 4096), (64, 8192), (100_000, 8192)] {
            let limits = Limits::within(memory_mib << 20);
            assert_eq!(limits.block_bytes, block_kib << 10, "{memory_mib} MiB");
            assert!(limits.memory_bytes >= 8 * limits.block_bytes);
        }
    }
}

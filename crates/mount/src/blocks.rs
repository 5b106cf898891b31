//! The block map: the bytes of all open files, in blocks that are fetched once and shared by every reader.
//!
//! A file is a row of blocks of 8 MiB. Whoever reads a place gets the block there, present, on its way or
//! asked for now, and waits only for the bytes it needs of it. Reads in sequence have further blocks fetched
//! ahead ([`streams`]), or whatever a reader has said it will read ([`plan`]), until enough lies [`ready`]; one supply of
//! memory ([`buffer`]) bounds all files together, and what no reader is heading for makes room for what one is. A failed
//! fetch leaves nothing behind.
//!
//! It knows files by inode and bytes by [`BlockSource`], and nothing of kernels or of networks.

mod block;
mod buffer;
mod fetch;
mod pace;
mod plan;
mod read;
mod ready;
mod streams;
mod table;

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::runtime::Handle;

use self::buffer::Memory;
use self::table::Table;
use super::source::{BlockSource, Fault, FaultKind};
use super::tree::Inode;
use flashjob_bucket::Object;

pub use self::read::{Bytes, Read};

/// How large the map is and how hard it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of a block.
    pub block_bytes: usize,
    /// Memory for all blocks together.
    pub memory_bytes: usize,
    /// Fetches at a time at most for what will be wanted; as many again for what is waited for.
    pub fetches: usize,
    /// Blocks that one stream may be ahead.
    pub window_blocks: usize,
}

impl Limits {
    /// The length at which a request's latency no longer counts beside its transfer.
    const BLOCK_BYTES: usize = 8 << 20;
    /// Below this, blocks would be smaller than what the kernel asks for.
    const LEAST_MEMORY_BYTES: usize = 8 << 20;

    /// What suits a budget of `memory_bytes`, which is raised to 8 MiB. Small budgets have smaller blocks, so
    /// that there are always a few.
    pub fn within(memory_bytes: u64) -> Self {
        let memory_bytes = usize::try_from(memory_bytes).unwrap_or(usize::MAX).max(Self::LEAST_MEMORY_BYTES);
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

/// What the map, its fetches and its readers have in common.
struct Shared {
    source: Arc<dyn BlockSource>,
    runtime: Handle,
    limits: Limits,
    memory: Arc<Memory>,
    table: Mutex<Table>,
    /// Somebody waits for memory: whoever lets go of a block looks for work.
    starved: AtomicBool,
    first_fault: OnceLock<Fault>,
}

impl Shared {
    /// Held for moments, never across a wait for anything.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the first fault that a reader got, for [`BlockMap::health`].
    fn report(&self, fault: &Fault) {
        if fault.kind() != FaultKind::Closed && self.first_fault.set(fault.clone()).is_ok() {
            tracing::error!(errno = ?fault.kind().errno(), "a file of the mount cannot be read: {fault}");
        }
    }
}

impl BlockMap {
    /// An empty map of what `source` has. Fetches run on `runtime`, as many as `source` has connections for at most.
    pub fn new(source: Arc<dyn BlockSource>, limits: Limits, runtime: Handle) -> Self {
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

    /// Takes back one [`BlockMap::open`]. What was read stays as long as nobody needs its place.
    pub fn close(&self, inode: Inode) {
        self.shared.lock().close(inode);
    }

    /// Begins to read `range` of an open file, cut off at its end. `promised` is how far the reader is certain
    /// to go on reading; `range.end` where that is not known.
    pub fn read(&self, inode: Inode, range: Range<u64>, promised: u64) -> Read {
        read::begin(&self.shared, inode, range, promised)
    }

    /// Says that `range` of an open file will be read after all that was said before: it is fetched in that order,
    /// as far ahead as memory allows.
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
        self.shared.lock().shut();
        self.shared.source.end();
    }

    /// Bytes of memory in use, and the most that ever were.
    pub fn memory_bytes(&self) -> (usize, usize) {
        self.shared.memory.held_and_peak_bytes()
    }

    /// The runtime that fetches.
    pub(super) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    /// The limits it works within.
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

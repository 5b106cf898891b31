//! Fetches: one task for each block on its way.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use super::block::Block;
use super::buffer::Writer;
use super::table::Fetch;
use super::{Fault, FaultKind, Inode, Shared};

impl Shared {
    /// Starts as many fetches as limits allow. Must be called without the table's lock.
    pub(super) fn start_fetches(self: &Arc<Self>) {
        while let Some(Fetch { inode, object, block, range, writer }) = self.next_fetch() {
            // Made before the task: a runtime that is shutting down drops a task unpolled, and the block's waiters must
            // learn of it all the same.
            let ending = Ending { shared: Arc::clone(self), inode, block: Some(block), result: None };
            self.runtime.spawn(async move {
                let mut ending = ending;
                ending.result = Some(fill(&ending, &object, range, writer).await);
            });
        }
    }

    fn next_fetch(&self) -> Option<Fetch> {
        let mut table = self.lock();
        table.throttled(self.source.throttled());
        // Store before the check (Dekker's pattern): a reader that drops a block either dropped it before this check,
        // or reads the flag afterwards and starts fetches itself. The fences order the store before the look at
        // reference counts.
        self.starved.store(table.is_starved(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let fetch = table.next_fetch(&self.memory);
        self.starved.store(table.is_starved(), Ordering::SeqCst);
        fetch
    }

    /// Starts fetches if a read waits for memory. Called after a block was dropped.
    pub(super) fn look_for_work(self: &Arc<Self>) {
        fence(Ordering::SeqCst);
        if self.starved.load(Ordering::SeqCst) {
            self.start_fetches();
        }
    }
}

/// Fetches one block from the source into its buffer.
async fn fill(
    ending: &Ending,
    object: &flashjob_bucket::Object,
    range: std::ops::Range<u64>,
    mut writer: Writer,
) -> Result<(), Fault> {
    let Some(block) = &ending.block else { return Err(Fault::closed()) };
    // A source that returns another length than was asked for is a fault, not the end of a file: half a block must
    // never look complete.
    let mut too_much = false;
    let mut began = Some(Instant::now());
    let mut sink = |bytes: &[u8]| {
        if let Some(began) = began.take() {
            ending.shared.lock().first_byte(began.elapsed());
        }
        too_much |= !block.append(&mut writer, bytes);
    };
    ending.shared.source.read(object, range.clone(), &mut sink).await?;
    if block.filled() == block.len && !too_much {
        return Ok(());
    }
    let difference = if too_much { "more" } else { "less" };
    Err(Fault::new(
        FaultKind::Unreachable,
        format!(
            "object `{}` gave {difference} than its bytes {} to {} when asked for them; \
             check that no proxy alters answers",
            object.name,
            range.start,
            range.end - 1,
        ),
    ))
}

/// Ends a block in every case: its fetch is done, failed, was dropped or panicked.
struct Ending {
    shared: Arc<Shared>,
    inode: Inode,
    block: Option<Arc<Block>>,
    result: Option<Result<(), Fault>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(block) = self.block.take() else { return };
        let fault = match self.result.take() {
            Some(Ok(())) => None,
            Some(Err(fault)) => Some(fault),
            None => Some(Fault::closed()),
        };
        self.shared.lock().finished(self.inode, &block, fault.is_some());
        if let Some(fault) = fault {
            block.fail(fault);
        }
        // Dropped first: while this handle lives, the block counts as in use and could not be evicted for the next
        // fetch.
        drop(block);
        self.shared.start_fetches();
    }
}

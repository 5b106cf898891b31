//! Reads: completed at once if the bytes have arrived, else a future.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use super::block::Block;
use super::streams::Shape;
use super::{Fault, Inode, Shared};

/// A read in progress.
pub enum Read {
    /// The read has finished, with bytes or a fault.
    Ready(Result<Bytes, Fault>),
    /// The bytes are on their way. The future may be awaited on any runtime.
    Waiting(Pin<Box<dyn Future<Output = Result<Bytes, Fault>> + Send>>),
}

impl Read {
    /// The bytes, waited for if need be.
    ///
    /// # Errors
    /// Why they did not come.
    pub async fn finish(self) -> Result<Bytes, Fault> {
        match self {
            Read::Ready(result) => result,
            Read::Waiting(future) => future.await,
        }
    }
}

/// Bytes that were read: a borrowed part of a block, which stays in memory as long as this lives, or a copy.
pub struct Bytes(Content);

enum Content {
    Piece(Holding, Range<usize>),
    Copy(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Content::Piece(holding, range) => &holding.block.bytes()[range.clone()],
            Content::Copy(bytes) => bytes,
        }
    }
}

/// Keeps a block from being evicted. Once dropped, it starts fetches if a read waits for memory.
struct Holding {
    // Declaration order is drop order: the block's handle goes first, so that the check afterwards finds it unused.
    block: Arc<Block>,
    _letting_go: LettingGo,
}

struct LettingGo(Arc<Shared>);

impl Drop for LettingGo {
    fn drop(&mut self) {
        self.0.look_for_work();
    }
}

impl Holding {
    fn new(shared: &Arc<Shared>, block: Arc<Block>) -> Self {
        Self { block, _letting_go: LettingGo(Arc::clone(shared)) }
    }

    /// The bytes `range` of the block, which have arrived.
    fn into_piece(self, range: Range<usize>) -> Bytes {
        self.block.deliver(range.len());
        Bytes(Content::Piece(self, range))
    }
}

/// The part of `range` that lies in its first block, relative to the block's start.
fn in_first_block(range: &Range<u64>, shape: &Shape) -> Range<usize> {
    let start = range.start % shape.block_bytes;
    let end = shape.block_bytes.min(start + (range.end - range.start));
    start as usize..end as usize
}

pub(super) fn begin(shared: &Arc<Shared>, inode: Inode, range: Range<u64>, promised: u64) -> Read {
    let mut table = shared.lock();
    let Some(shape) = table.shape(inode) else {
        return Read::Ready(Err(Fault::closed()));
    };
    let range = range.start..range.end.min(shape.size_bytes);
    if range.is_empty() {
        return Read::Ready(Ok(Bytes(Content::Copy(Vec::new()))));
    }
    let Some(block) = table.read(inode, &range, promised) else {
        return Read::Ready(Err(Fault::closed()));
    };
    // From here on the handle keeps the block; `start_fetches` takes the lock again.
    drop(table);
    let holding = Holding::new(shared, block);
    shared.start_fetches();
    // The fast path: one block that is filled far enough. No future is allocated and nothing is copied.
    let piece = in_first_block(&range, &shape);
    if piece.len() as u64 == range.end - range.start && holding.block.filled() >= piece.end {
        return Read::Ready(Ok(holding.into_piece(piece)));
    }
    let shared = Arc::clone(shared);
    Read::Waiting(Box::pin(async move {
        let result = gather(&shared, inode, range, shape, holding).await;
        if let Err(fault) = &result {
            shared.report(fault);
        }
        result
    }))
}

/// Waits for `range`, whose first block is `holding`. It never holds one block while it waits for another one: with
/// memory for few blocks, such readers would deadlock.
async fn gather(
    shared: &Arc<Shared>,
    inode: Inode,
    mut range: Range<u64>,
    shape: Shape,
    mut holding: Holding,
) -> Result<Bytes, Fault> {
    let mut copy = Vec::new();
    loop {
        let piece = in_first_block(&range, &shape);
        holding.block.wait(piece.end).await?;
        range.start += piece.len() as u64;
        // A range within one block is lent, not copied, even if it had to be waited for.
        if copy.is_empty() && range.is_empty() {
            return Ok(holding.into_piece(piece));
        }
        copy.reserve(piece.len() + (range.end - range.start) as usize);
        copy.extend_from_slice(&holding.into_piece(piece));
        if range.is_empty() {
            return Ok(Bytes(Content::Copy(copy)));
        }
        // Later blocks are demanded one after the other. Readahead has usually asked for them already.
        let next = shared.lock().demand(inode, range.start / shape.block_bytes);
        holding = Holding::new(shared, next.ok_or_else(Fault::closed)?);
        shared.start_fetches();
    }
}

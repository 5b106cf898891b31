//! The table of blocks: which exist, which to fetch next, which to evict.
//!
//! Pure decisions under one lock, without I/O and without waits.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Limits;
use super::block::Block;
use super::buffer::{Memory, Writer};
use super::concurrency::Concurrency;
use super::plan::Plan;
use super::readahead::Readahead;
use super::streams::{Shape, Streams};
use crate::tree::Inode;
use flashjob_bucket::Object;

/// Consumed blocks that are kept nevertheless, for readers that are a little behind.
const KEPT_CONSUMED: usize = 4;

/// All files that are open or have blocks.
pub(super) struct Table {
    limits: Limits,
    files: HashMap<Inode, File>,
    /// Inodes of `files` that are open.
    open: BTreeSet<Inode>,
    /// Blocks that readers wait for and that have no memory yet, oldest first.
    demanded: VecDeque<(Inode, u64)>,
    /// Ranges that readers have announced.
    plan: Plan,
    /// Fetches in progress.
    fetching: usize,
    concurrency: Concurrency,
    readahead: Readahead,
    /// Logical clock: the number of reads so far.
    clock: u64,
    shut: bool,
}

struct File {
    object: Arc<Object>,
    shape: Shape,
    opens: usize,
    blocks: BTreeMap<u64, Arc<Block>>,
    streams: Streams,
}

/// A fetch that may start: its buffer is allocated.
pub(super) struct Fetch {
    pub(super) inode: Inode,
    pub(super) object: Arc<Object>,
    pub(super) block: Arc<Block>,
    pub(super) range: Range<u64>,
    pub(super) writer: Writer,
}

/// Blocks that a fetch may evict.
#[derive(Clone, Copy)]
enum Need {
    /// A reader waits for the block: any unused block may go.
    Demanded,
    /// A reader will reach the block after so many others: a block outside of all windows may go, or one that is
    /// further ahead.
    Ahead(u64),
}

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        let (files, open, demanded) = (HashMap::new(), BTreeSet::new(), VecDeque::new());
        let (plan, concurrency, readahead) =
            (Plan::default(), Concurrency::new(limits.fetches), Readahead::new(limits.fetches));
        Self { limits, files, open, demanded, plan, fetching: 0, concurrency, readahead, clock: 0, shut: false }
    }

    pub(super) fn open(&mut self, inode: Inode, object: Object) {
        let Limits { block_bytes, window_blocks, .. } = self.limits;
        let file = self.files.entry(inode).or_insert_with(|| {
            let object = Arc::new(object);
            let (block_bytes, window_blocks) = (block_bytes as u64, window_blocks as u64);
            let shape = Shape { size_bytes: object.size_bytes, block_bytes, window_blocks };
            File { object, shape, opens: 0, blocks: BTreeMap::new(), streams: Streams::default() }
        });
        file.opens += 1;
        self.open.insert(inode);
    }

    pub(super) fn close(&mut self, inode: Inode) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.opens = file.opens.saturating_sub(1);
        if file.opens == 0 {
            self.open.remove(&inode);
            self.plan.forget(inode);
            file.streams.clear();
            // Consumed blocks are in the kernel's page cache. Blocks that were read in part are kept for the next open.
            file.blocks.retain(|_, block| !block.is_consumed() || block.filled() < block.len);
        }
        self.forget_if_unused(inode);
    }

    fn forget_if_unused(&mut self, inode: Inode) {
        if self.files.get(&inode).is_some_and(|file| file.opens == 0 && file.blocks.is_empty()) {
            self.files.remove(&inode);
        }
    }

    pub(super) fn shut(&mut self) {
        self.shut = true;
        self.demanded.clear();
        self.plan.clear();
        self.files.values_mut().for_each(|file| file.streams.clear());
    }

    /// Shape of an open file; `None` also after the end.
    pub(super) fn shape(&self, inode: Inode) -> Option<Shape> {
        self.files.get(&inode).filter(|file| file.opens > 0 && !self.shut).map(|file| file.shape)
    }

    /// Records a read of `range`, which is not empty and lies within the file. Returns its first block and demands it
    /// if it is absent.
    pub(super) fn read(&mut self, inode: Inode, range: &Range<u64>, promised: u64) -> Option<Arc<Block>> {
        let file = self.files.get_mut(&inode)?;
        let index = range.start / file.shape.block_bytes;
        // An announced order is better than a guess: such reads do not move streams.
        if !self.plan.reached((inode, index), self.limits.window_blocks as u64) {
            file.streams.read(range, promised, &file.shape, Instant::now());
        }
        self.demand(inode, index)
    }

    /// Appends `range` of an open file to the plan.
    pub(super) fn will_read(&mut self, inode: Inode, range: Range<u64>) {
        let Some(shape) = self.shape(inode) else { return };
        let end = range.end.min(shape.size_bytes).div_ceil(shape.block_bytes);
        self.plan.extend(inode, range.start / shape.block_bytes..end);
    }

    /// Records the number of throttling answers of the source so far.
    pub(super) fn throttled(&mut self, times: u64) {
        self.concurrency.observe(times, Instant::now());
    }

    /// Block `index` of an open file, demanded if it is absent. `None` after the end.
    pub(super) fn demand(&mut self, inode: Inode, index: u64) -> Option<Arc<Block>> {
        if self.shut {
            return None;
        }
        self.clock += 1;
        let file = self.files.get_mut(&inode)?;
        let shape = file.shape;
        let block = file.blocks.entry(index).or_insert_with(|| {
            self.demanded.push_back((inode, index));
            let bytes = shape.bytes_of(index);
            Block::new(index, (bytes.end - bytes.start) as usize)
        });
        // The first read of a block that followed a pause tells whether the pause was too long.
        if block.last_read.swap(self.clock, Ordering::Relaxed) == 0 && block.after_pause.load(Ordering::Relaxed) {
            self.readahead.learn(block.is_complete());
        }
        Some(Arc::clone(block))
    }

    /// The next fetch that may start now.
    pub(super) fn next_fetch(&mut self, memory: &Arc<Memory>) -> Option<Fetch> {
        if self.shut {
            return None;
        }
        // Demanded blocks go first, and may use twice the concurrency: readahead that fills all connections must not
        // delay a reader that waits.
        if let Some(&(inode, index)) = self.demanded.front() {
            if self.fetching >= 2 * self.concurrency.fetches() {
                return None;
            }
            let fetch = self.prepare(inode, index, Need::Demanded, memory)?;
            self.demanded.pop_front();
            return Some(fetch);
        }
        if self.fetching >= self.concurrency.fetches() {
            return None;
        }
        // Plan and streams compete by distance: the block that a reader reaches soonest is fetched first.
        let now = Instant::now();
        let Self { files, open, plan, limits, readahead, .. } = &mut *self;
        let complete =
            |(inode, index): (Inode, u64)| files.get(&inode)?.blocks.get(&index).map(|block| block.is_complete());
        let planned = plan.wanted(limits.window_blocks as u64, readahead, complete);
        let mut nearest = planned.map(|((inode, index), distance)| (inode, index, distance));
        for &inode in open.iter() {
            let Some(File { streams, blocks, shape, .. }) = files.get_mut(&inode) else { continue };
            if let Some((index, distance)) =
                streams.wanted(shape, readahead, |index| blocks.get(&index).map(|block| block.is_complete()), now)
                && nearest.is_none_or(|(_, _, least)| distance < least)
            {
                nearest = Some((inode, index, distance));
            }
        }
        let (inode, index, distance) = nearest?;
        let fetch = self.prepare(inode, index, Need::Ahead(distance), memory)?;
        if self.readahead.resume() {
            fetch.block.after_pause.store(true, Ordering::Relaxed);
        }
        Some(fetch)
    }

    /// Returns whether a reader waits for memory.
    pub(super) fn is_starved(&self) -> bool {
        !self.demanded.is_empty()
    }

    /// Allocates the buffer of a block and counts its fetch. `None` while no memory can be had.
    fn prepare(&mut self, inode: Inode, index: u64, need: Need, memory: &Arc<Memory>) -> Option<Fetch> {
        let file = self.files.get(&inode)?;
        let range = file.shape.bytes_of(index);
        let len = (range.end - range.start) as usize;
        // Blocks that readers have consumed are reused before memory is allocated: their pages are mapped already.
        if len == self.limits.block_bytes && !memory.has_free() {
            self.recycle();
        }
        // Each round evicts one block. It ends with a buffer, or when no block may be evicted.
        let (writer, buffer) = loop {
            match memory.take(len) {
                Some(taken) => break taken,
                None => self.make_room(need)?,
            }
        };
        let file = self.files.get_mut(&inode)?;
        let block = Arc::clone(file.blocks.entry(index).or_insert_with(|| Block::new(index, len)));
        block.begin(buffer);
        self.fetching += 1;
        Some(Fetch { inode, object: Arc::clone(&file.object), block, range, writer })
    }

    /// Evicts the consumed full-size block that was read longest ago (LRU), if more than a few are kept.
    fn recycle(&mut self) {
        let (mut idle, mut oldest) = (0, None::<(u64, Inode, u64)>);
        for (&inode, file) in &self.files {
            for (&index, block) in &file.blocks {
                let whole = block.len == self.limits.block_bytes && block.filled() == block.len;
                // A reference count of one: no reader, waiter or fetch holds it.
                if whole && block.is_consumed() && Arc::strong_count(block) == 1 {
                    idle += 1;
                    let last_read = block.last_read.load(Ordering::Relaxed);
                    if oldest.is_none_or(|(least, ..)| last_read < least) {
                        oldest = Some((last_read, inode, index));
                    }
                }
            }
        }
        if let Some((_, inode, index)) = oldest.filter(|_| idle > KEPT_CONSUMED)
            && let Some(file) = self.files.get_mut(&inode)
        {
            file.blocks.remove(&index);
            self.forget_if_unused(inode);
        }
    }

    /// Evicts the least useful block without a user; `None` if there is none that `need` may evict.
    fn make_room(&mut self, need: Need) -> Option<()> {
        let now = Instant::now();
        let mut least: Option<(Usefulness, Inode, u64)> = None;
        for (&inode, file) in &self.files {
            for (&index, block) in &file.blocks {
                // The table's own handle must be the only one: no reader, no waiter, no fetch.
                if Arc::strong_count(block) > 1 || block.filled() < block.len {
                    continue;
                }
                let planned = || self.plan.distance((inode, index), self.limits.window_blocks as u64);
                // Where consumed, no reader comes to the block again: its distance does not matter, and computing it is the
                // expensive part.
                let ahead = if block.is_consumed() {
                    None
                } else {
                    planned().or_else(|| file.streams.distance(index, &file.shape, now))
                };
                let last_read = block.last_read.load(Ordering::Relaxed);
                let usefulness = match ahead {
                    Some(distance) => Usefulness::Ahead(Reverse(distance)),
                    None if block.is_consumed() => Usefulness::Consumed { last_read },
                    None => Usefulness::Left { last_read },
                };
                if least.is_none_or(|(least, ..)| usefulness < least) {
                    least = Some((usefulness, inode, index));
                }
            }
        }
        let (usefulness, inode, index) = least?;
        // Readahead must not evict what will be read sooner, or two readers would take each other's blocks in turn.
        let may_go = match (need, usefulness) {
            (Need::Ahead(mine), Usefulness::Ahead(Reverse(theirs))) => mine < theirs,
            _ => true,
        };
        if !may_go {
            return None;
        }
        self.files.get_mut(&inode)?.blocks.remove(&index);
        self.forget_if_unused(inode);
        Some(())
    }

    /// Records that a fetch brought its first byte `after` so long.
    pub(super) fn first_byte(&mut self, after: Duration) {
        self.concurrency.first_byte(after);
    }

    /// Records the end of a fetch. A failed block is removed, so that the next read tries again.
    pub(super) fn finished(&mut self, inode: Inode, block: &Arc<Block>, failed: bool) {
        self.fetching -= 1;
        if !failed {
            self.concurrency.succeeded(block.was_waited_for());
            return;
        }
        // After a fault, readahead would only fail again and again; a read that comes proves that bytes are still
        // wanted.
        self.plan.stall();
        if let Some(file) = self.files.get_mut(&inode) {
            file.streams.stall();
            // It may have been replaced meanwhile, by a read after an earlier failure.
            if file.blocks.get(&block.index).is_some_and(|present| Arc::ptr_eq(present, block)) {
                file.blocks.remove(&block.index);
            }
        }
        self.forget_if_unused(inode);
    }
}

/// Eviction order: the smallest value is evicted first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Usefulness {
    /// All bytes were handed out; within this, least recently used first.
    Consumed { last_read: u64 },
    /// Read in part, and outside of every window; least recently used first.
    Left { last_read: u64 },
    /// Number of blocks until a reader reaches it; the furthest goes first.
    Ahead(Reverse<u64>),
}

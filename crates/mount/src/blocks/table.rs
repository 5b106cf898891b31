//! Who has which blocks, what to fetch next, and what to give up for it.
//!
//! Plain decisions under one lock: nothing here waits, and nothing here fetches.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Limits;
use super::block::Block;
use super::buffer::{Memory, Writer};
use super::pace::Pace;
use super::plan::Plan;
use super::ready::Ready;
use super::streams::{Shape, Streams};
use crate::tree::Inode;
use flashjob_bucket::Object;

/// Blocks that are kept although their readers have had all of them: somebody may be a little behind.
const KEPT_CONSUMED: usize = 4;

/// All files that are open or have blocks.
pub(super) struct Table {
    limits: Limits,
    files: HashMap<Inode, File>,
    /// Those of `files` that are open.
    open: BTreeSet<Inode>,
    /// Blocks that readers wait for and that have no memory yet, in the order of asking.
    demanded: VecDeque<(Inode, u64)>,
    /// What readers have said they will read.
    plan: Plan,
    /// Fetches on their way.
    fetching: usize,
    pace: Pace,
    ready: Ready,
    /// Counts reads.
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

/// A fetch that may start: its memory is there.
pub(super) struct Fetch {
    pub(super) inode: Inode,
    pub(super) object: Arc<Object>,
    pub(super) block: Arc<Block>,
    pub(super) range: Range<u64>,
    pub(super) writer: Writer,
}

/// What a fetch may push out.
#[derive(Clone, Copy)]
enum Need {
    /// Somebody waits: anything.
    Demanded,
    /// A reader will be there in so many blocks: what no reader is heading for, or only from further away.
    Ahead(u64),
}

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        let (files, open, demanded) = (HashMap::new(), BTreeSet::new(), VecDeque::new());
        let (plan, pace, ready) = (Plan::default(), Pace::new(limits.fetches), Ready::new(limits.fetches));
        Self { limits, files, open, demanded, plan, fetching: 0, pace, ready, clock: 0, shut: false }
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
            // Readers have had it, and the kernel keeps it: what stays is what they will come back for.
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

    /// The shape of an open file; `None` also after the end.
    pub(super) fn shape(&self, inode: Inode) -> Option<Shape> {
        self.files.get(&inode).filter(|file| file.opens > 0 && !self.shut).map(|file| file.shape)
    }

    /// Notes a read of `range`, which is not empty and within the file, and returns its first block, asking
    /// for it if need be.
    pub(super) fn read(&mut self, inode: Inode, range: &Range<u64>, promised: u64) -> Option<Arc<Block>> {
        let file = self.files.get_mut(&inode)?;
        let index = range.start / file.shape.block_bytes;
        // Who has a plan needs no guesses.
        if !self.plan.reached((inode, index), self.limits.window_blocks as u64) {
            file.streams.read(range, promised, &file.shape, Instant::now());
        }
        self.demand(inode, index)
    }

    /// Puts `range` of an open file at the end of the plan.
    pub(super) fn will_read(&mut self, inode: Inode, range: Range<u64>) {
        let Some(shape) = self.shape(inode) else { return };
        let end = range.end.min(shape.size_bytes).div_ceil(shape.block_bytes);
        self.plan.extend(inode, range.start / shape.block_bytes..end);
    }

    /// Notes how often the source has been asked to slow down.
    pub(super) fn throttled(&mut self, times: u64) {
        self.pace.observe(times, Instant::now());
    }

    /// The block at `index` of an open file, asked for if need be. `None` after the end.
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
        if block.last_read.swap(self.clock, Ordering::Relaxed) == 0 && block.after_pause.load(Ordering::Relaxed) {
            self.ready.learn(block.is_complete());
        }
        Some(Arc::clone(block))
    }

    /// The next fetch that may start now.
    pub(super) fn next_fetch(&mut self, memory: &Arc<Memory>) -> Option<Fetch> {
        if self.shut {
            return None;
        }
        if let Some(&(inode, index)) = self.demanded.front() {
            if self.fetching >= 2 * self.pace.fetches() {
                return None;
            }
            let fetch = self.prepare(inode, index, Need::Demanded, memory)?;
            self.demanded.pop_front();
            return Some(fetch);
        }
        if self.fetching >= self.pace.fetches() {
            return None;
        }
        let now = Instant::now();
        let Self { files, open, plan, limits, ready, .. } = &mut *self;
        let complete =
            |(inode, index): (Inode, u64)| files.get(&inode)?.blocks.get(&index).map(|block| block.is_complete());
        let planned = plan.wanted(limits.window_blocks as u64, ready, complete);
        let mut nearest = planned.map(|((inode, index), distance)| (inode, index, distance));
        for &inode in open.iter() {
            let Some(File { streams, blocks, shape, .. }) = files.get_mut(&inode) else { continue };
            if let Some((index, distance)) =
                streams.wanted(shape, ready, |index| blocks.get(&index).map(|block| block.is_complete()), now)
                && nearest.is_none_or(|(_, _, least)| distance < least)
            {
                nearest = Some((inode, index, distance));
            }
        }
        let (inode, index, distance) = nearest?;
        let fetch = self.prepare(inode, index, Need::Ahead(distance), memory)?;
        if self.ready.resume() {
            fetch.block.after_pause.store(true, Ordering::Relaxed);
        }
        Some(fetch)
    }

    /// Whether a reader waits for memory.
    pub(super) fn is_starved(&self) -> bool {
        !self.demanded.is_empty()
    }

    /// Finds memory for a block and counts its fetch. `None` while there is no memory to be had.
    fn prepare(&mut self, inode: Inode, index: u64, need: Need, memory: &Arc<Memory>) -> Option<Fetch> {
        let file = self.files.get(&inode)?;
        let range = file.shape.bytes_of(index);
        let len = (range.end - range.start) as usize;
        // What readers have had is used again before more memory is taken: pages that are mapped cost nothing.
        if len == self.limits.block_bytes && !memory.has_free() {
            self.recycle();
        }
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

    /// Gives up the whole block that readers have had for longest, where more than a few are kept.
    fn recycle(&mut self) {
        let (mut idle, mut oldest) = (0, None::<(u64, Inode, u64)>);
        for (&inode, file) in &self.files {
            for (&index, block) in &file.blocks {
                let whole = block.len == self.limits.block_bytes && block.filled() == block.len;
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

    /// Gives up the least useful block that nobody uses at this moment.
    fn make_room(&mut self, need: Need) -> Option<()> {
        let now = Instant::now();
        let mut least: Option<(Usefulness, Inode, u64)> = None;
        for (&inode, file) in &self.files {
            for (&index, block) in &file.blocks {
                // The map's own handle is the only one: no reader, no waiter, no fetch.
                if Arc::strong_count(block) > 1 || block.filled() < block.len {
                    continue;
                }
                let planned = || self.plan.distance((inode, index), self.limits.window_blocks as u64);
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

    /// Notes that a fetch has brought its first byte `after` so long.
    pub(super) fn first_byte(&mut self, after: Duration) {
        self.pace.first_byte(after);
    }

    /// Notes the end of a fetch. A failed block is forgotten, so that the next reader tries again.
    pub(super) fn finished(&mut self, inode: Inode, block: &Arc<Block>, failed: bool) {
        self.fetching -= 1;
        if !failed {
            self.pace.succeeded(block.was_waited_for());
            return;
        }
        self.plan.stall();
        if let Some(file) = self.files.get_mut(&inode) {
            file.streams.stall();
            if file.blocks.get(&block.index).is_some_and(|present| Arc::ptr_eq(present, block)) {
                file.blocks.remove(&block.index);
            }
        }
        self.forget_if_unused(inode);
    }
}

/// What is given up first sorts first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Usefulness {
    /// All of it was handed out: its readers have it.
    Consumed { last_read: u64 },
    /// Read in part, and no reader is heading for the rest.
    Left { last_read: u64 },
    /// A reader will be there in so many blocks.
    Ahead(Reverse<u64>),
}

//! Readahead along an announced order of reads.
//!
//! A loader knows the offset of every tensor before it reads the first one, and its order is seldom that of the file.
//! The plan is a queue of blocks; readers move along it, and the blocks before them are fetched, nearest first.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use super::readahead::Readahead;
use crate::tree::Inode;

/// Blocks in the order in which a reader will read them, each once.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Blocks from the readers' position on.
    ahead: VecDeque<(Inode, u64)>,
    /// The blocks of `ahead` as a set, for constant-time lookup.
    known: HashSet<(Inode, u64)>,
    /// Number of blocks of `ahead` that have been asked for.
    asked: usize,
    /// Set by a failed fetch: readahead waits for the next read.
    stalled: bool,
}

impl Plan {
    /// Adds `blocks` of a file at the end. Those that are in the plan already are not read twice.
    pub(super) fn extend(&mut self, inode: Inode, blocks: Range<u64>) {
        for block in blocks.map(|index| (inode, index)) {
            if self.known.insert(block) {
                self.ahead.push_back(block);
            }
        }
    }

    /// Advances the plan to `block` and returns whether the block is part of it. Blocks before it have been read or are
    /// being read.
    pub(super) fn reached(&mut self, block: (Inode, u64), window: u64) -> bool {
        if !self.known.contains(&block) {
            return false;
        }
        self.stalled = false;
        // Readers on several threads arrive out of order, but within one window. A block further ahead than that does
        // not move the plan: it would drop blocks that are still needed.
        if let Some(place) = self.place(block, window) {
            for done in self.ahead.drain(..place) {
                self.known.remove(&done);
            }
            self.asked = self.asked.saturating_sub(place);
        }
        true
    }

    /// The next block to ask for and its distance in blocks, unless `readahead` has enough. `complete` returns `None`
    /// for a block that has not been asked for, else whether all of its bytes have arrived.
    pub(super) fn wanted(
        &mut self,
        window: u64,
        readahead: &mut Readahead,
        complete: impl Fn((Inode, u64)) -> Option<bool>,
    ) -> Option<((Inode, u64), u64)> {
        let end = self.ahead.len().min(usize::try_from(window).unwrap_or(usize::MAX));
        // Blocks that a read asked for by itself are skipped. One that was evicted before its reader came is not asked
        // for again here: the reader asks for it, or readahead would fetch it in a loop.
        while self.asked < end && complete(self.ahead[self.asked]).is_some() {
            self.asked += 1;
        }
        let mut is_enough = || readahead.is_enough(self.ahead.iter().take(self.asked).map(|&block| complete(block)));
        let wanted = self.asked < end && !self.stalled && !is_enough();
        wanted.then(|| (self.ahead[self.asked], self.asked as u64))
    }

    /// Distance of `block` from the readers in blocks, or `None` outside of the window.
    pub(super) fn distance(&self, block: (Inode, u64), window: u64) -> Option<u64> {
        if !self.known.contains(&block) {
            return None;
        }
        self.place(block, window).map(|place| place as u64)
    }

    fn place(&self, block: (Inode, u64), window: u64) -> Option<usize> {
        self.ahead.iter().take(usize::try_from(window).unwrap_or(usize::MAX)).position(|&ahead| ahead == block)
    }

    /// Stops readahead until the next read.
    pub(super) fn stall(&mut self) {
        self.stalled = true;
    }

    /// Removes the blocks of `inode`, which was closed.
    pub(super) fn forget(&mut self, inode: Inode) {
        if self.known.iter().any(|&(planned, _)| planned == inode) {
            self.ahead.retain(|&(planned, _)| planned != inode);
            self.known.retain(|&(planned, _)| planned != inode);
            self.asked = 0;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Inode = Inode::ROOT;

    fn asked(plan: &mut Plan, window: u64) -> Vec<u64> {
        let mut asked = Vec::new();
        while let Some(((_, block), distance)) =
            plan.wanted(window, &mut Readahead::new(32), |(_, block)| asked.contains(&block).then_some(false))
        {
            assert!(distance < window);
            asked.push(block);
        }
        asked
    }

    #[test]
    fn blocks_come_in_the_order_of_reading_and_once() {
        let mut plan = Plan::default();
        plan.extend(FILE, 7..10);
        plan.extend(FILE, 0..3);
        plan.extend(FILE, 2..4);
        plan.extend(FILE, 8..9);
        assert_eq!(asked(&mut plan, 4), [7, 8, 9, 0]);
        assert!(plan.reached((FILE, 8), 4));
        assert_eq!(plan.distance((FILE, 8), 4), Some(0));
        assert_eq!(plan.distance((FILE, 1), 4), Some(3));
        assert_eq!((plan.distance((FILE, 7), 4), plan.distance((FILE, 3), 4)), (None, None));
        // What was asked for, and pushed out before its reader came, is for the reader to ask for.
        assert_eq!(plan.wanted(4, &mut Readahead::new(32), |_| None), Some(((FILE, 1), 3)));
        assert!(!plan.reached((FILE, 50), 4) && !plan.reached((FILE, 7), 4));
    }

    #[test]
    fn enough_that_is_ready_in_a_row_is_enough() {
        let mut plan = Plan::default();
        plan.extend(FILE, 0..20);
        let mut wanted = |late: u64| {
            let there = |(_, block)| (block < 10).then_some(block != late);
            plan.wanted(16, &mut Readahead::new(32), there).map(|((_, block), _)| block)
        };
        assert_eq!((wanted(4), wanted(3), wanted(0)), (None, Some(10), Some(10)));
    }

    #[test]
    fn it_ends_with_its_file_and_pauses_after_a_failure() {
        let mut plan = Plan::default();
        plan.extend(FILE, 0..3);
        plan.extend(Inode::from_number(9), 5..6);
        plan.stall();
        assert_eq!(plan.wanted(8, &mut Readahead::new(32), |_| None), None);
        assert!(plan.reached((FILE, 1), 8));
        assert_eq!(plan.wanted(8, &mut Readahead::new(32), |_| None), Some(((FILE, 1), 0)));
        plan.forget(FILE);
        assert_eq!(plan.wanted(8, &mut Readahead::new(32), |_| None), Some(((Inode::from_number(9), 5), 0)));
        plan.clear();
        assert_eq!(plan.wanted(8, &mut Readahead::new(32), |_| None), None);
    }
}

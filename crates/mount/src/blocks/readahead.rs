//! Adaptive readahead depth: the number of complete blocks at which readahead pauses.
//!
//! Few complete blocks are best as long as they suffice: they stay in the processor's cache, and memory that is touched
//! for the first time costs more than the copy into it. They suffice where the network is faster than the reader. Where
//! it is not, blocks that were asked for together arrive together, and a pause until some of them are read leaves the
//! network idle. So each pause is judged by its effect: a reader that finds the first block after it incomplete doubles
//! the depth, one that finds it complete lowers it by a fraction.

/// Complete blocks that may wait for a reader, initially and at least.
const LEAST: f64 = 4.0;
/// Decrease, in blocks, after a pause that cost the reader nothing.
const STEP: f64 = 0.25;

/// Adaptive readahead depth: the number of consecutive complete blocks at which readahead pauses. Blocks behind an
/// incomplete one do not count.
#[derive(Debug)]
pub(super) struct Readahead {
    enough: f64,
    most: f64,
    paused: bool,
}

impl Readahead {
    /// A depth of at most `most` blocks, and at least [`LEAST`].
    pub(super) fn new(most: usize) -> Self {
        Self { enough: LEAST, most: LEAST.max(most as f64), paused: false }
    }

    /// Returns whether the blocks `ahead` of a reader, nearest first, begin with enough complete ones; a pause begins
    /// then.
    pub(super) fn is_enough(&mut self, ahead: impl Iterator<Item = Option<bool>>) -> bool {
        // Counting stops at the first incomplete block: the reader will wait there, whatever lies behind it.
        let complete = ahead.take_while(|&complete| complete == Some(true));
        let is_enough = complete.take(self.enough as usize).count() == self.enough as usize;
        self.paused |= is_enough;
        is_enough
    }

    /// Ends a pause, as the next block is asked for. Returns whether there was one.
    pub(super) fn resume(&mut self) -> bool {
        std::mem::take(&mut self.paused)
    }

    /// Adapts to a reader that reached the first block after a pause and found it `complete` or not: doubles on a miss,
    /// decreases slowly on a hit.
    // Asymmetric, since a pause that was too early idles the network, while a little too much readahead costs only
    // cache misses.
    pub(super) fn learn(&mut self, complete: bool) {
        let better = if complete { self.enough - STEP } else { self.enough * 2.0 };
        self.enough = better.clamp(LEAST, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enough(readahead: &mut Readahead) -> usize {
        (0..100).find(|&complete| readahead.is_enough((0..100).map(|block| Some(block < complete)))).unwrap()
    }

    #[test]
    fn complete_blocks_count_up_to_the_first_that_is_not() {
        let mut readahead = Readahead::new(32);
        for (ahead, is_enough) in [
            (&[][..], false),
            (&[Some(true); 3], false),
            (&[Some(true); 4], true),
            (&[Some(true); 5], true),
            (&[Some(false), Some(true), Some(true), Some(true), Some(true)], false),
            (&[Some(true), Some(true), None, Some(true), Some(true)], false),
        ] {
            assert_eq!(readahead.is_enough(ahead.iter().copied()), is_enough, "{ahead:?}");
        }
    }

    #[test]
    fn a_pause_that_made_a_reader_wait_doubles_what_is_enough() {
        let mut readahead = Readahead::new(30);
        assert!(!readahead.resume());
        assert_eq!(enough(&mut readahead), 4);
        assert!(readahead.resume() && !readahead.resume());
        for twice in [8, 16, 30, 30] {
            readahead.learn(false);
            assert_eq!(enough(&mut readahead), twice);
        }
        (0..4).for_each(|_| readahead.learn(true));
        assert_eq!(enough(&mut readahead), 29);
        (0..1000).for_each(|_| readahead.learn(true));
        assert_eq!(enough(&mut readahead), 4);
        assert_eq!(enough(&mut Readahead::new(1)), 4);
    }
}

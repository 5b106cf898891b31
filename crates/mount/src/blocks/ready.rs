//! How much may lie ready for a reader before reading ahead pauses.
//!
//! Few complete blocks are best as long as they suffice: they stay in the processor's cache, and memory that is touched
//! for the first time costs more than the copy into it. They suffice where the network is faster than the reader. Where
//! it is not, blocks that were asked for together arrive together; pausing then until some of them are read leaves the
//! network idle. So a pause is judged by what it was good for: a reader that finds the block after it incomplete had too
//! little ready, one that finds it complete had enough.

/// Complete blocks that may wait to begin with, and at least.
const LEAST: f64 = 4.0;
/// What is taken back after a pause that did no harm.
const STEP: f64 = 0.25;

/// The complete blocks, without a gap, that may wait for a reader. Behind a block that is late any number may wait.
#[derive(Debug)]
pub(super) struct Ready {
    enough: f64,
    most: f64,
    paused: bool,
}

impl Ready {
    /// Never more than `most` blocks wait, or the least number where that is more.
    pub(super) fn new(most: usize) -> Self {
        Self { enough: LEAST, most: LEAST.max(most as f64), paused: false }
    }

    /// Whether the blocks `ahead` of a reader, the nearest first, are enough of complete ones; a pause then begins.
    pub(super) fn is_enough(&mut self, ahead: impl Iterator<Item = Option<bool>>) -> bool {
        let complete = ahead.take_while(|&complete| complete == Some(true));
        let is_enough = complete.take(self.enough as usize).count() == self.enough as usize;
        self.paused |= is_enough;
        is_enough
    }

    /// Takes note of the end of a pause: the next block is asked for. Whether there was one.
    pub(super) fn resume(&mut self) -> bool {
        std::mem::take(&mut self.paused)
    }

    /// A reader came to a block that was asked for after a pause, and found it `complete` or not.
    pub(super) fn learn(&mut self, complete: bool) {
        let better = if complete { self.enough - STEP } else { self.enough * 2.0 };
        self.enough = better.clamp(LEAST, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enough(ready: &mut Ready) -> usize {
        (0..100).find(|&complete| ready.is_enough((0..100).map(|block| Some(block < complete)))).unwrap()
    }

    #[test]
    fn complete_blocks_count_up_to_the_first_that_is_not() {
        let mut ready = Ready::new(32);
        for (ahead, is_enough) in [
            (&[][..], false),
            (&[Some(true); 3], false),
            (&[Some(true); 4], true),
            (&[Some(true); 5], true),
            (&[Some(false), Some(true), Some(true), Some(true), Some(true)], false),
            (&[Some(true), Some(true), None, Some(true), Some(true)], false),
        ] {
            assert_eq!(ready.is_enough(ahead.iter().copied()), is_enough, "{ahead:?}");
        }
    }

    #[test]
    fn a_pause_that_made_a_reader_wait_doubles_what_is_enough() {
        let mut ready = Ready::new(30);
        assert!(!ready.resume());
        assert_eq!(enough(&mut ready), 4);
        assert!(ready.resume() && !ready.resume());
        for twice in [8, 16, 30, 30] {
            ready.learn(false);
            assert_eq!(enough(&mut ready), twice);
        }
        (0..4).for_each(|_| ready.learn(true));
        assert_eq!(enough(&mut ready), 29);
        (0..1000).for_each(|_| ready.learn(true));
        assert_eq!(enough(&mut ready), 4);
        assert_eq!(enough(&mut Ready::new(1)), 4);
    }
}

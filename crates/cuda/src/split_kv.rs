//! Split-KV (Flash-Decoding: Dao, Haziza, Massa and Sizov, 2023): the keys of few long sequences are divided, so that all of a GPU
//! has something to do.
//!
//! Each part of a sequence is attended to as if it were a sequence of its own; what comes of the parts is then joined. Pure
//! arithmetic: it knows blocks of the cache and nothing of GPUs.

use flashjob_engine::ForwardBatch;

/// Blocks of threads that are at work on each of a GPU's processors at a time: what is beyond them waits until the first are done.
/// Measured on an H100 with heads of 128: 24 sequences of 4096 tokens in two parts, 384 blocks on 132 processors, took 0.76 of
/// the time of whole ones, 28 sequences, 448 blocks, 1.2 times it.
const BLOCKS_PER_PROCESSOR: usize = 3;

/// A part is not worth its launches below this.
const MIN_KEYS_PER_SPLIT: usize = 256;

/// The keys of each sequence of a step, in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitKv {
    /// Parts of each sequence; 2 at least.
    pub num_splits: usize,
    /// Blocks that a part has at most: the width of its row of a block table.
    pub blocks: usize,
}

impl SplitKv {
    /// Splits for a step of `sequences` sequences of at most `max_blocks` blocks of `block_size` tokens on a GPU with so many
    /// `processors`; `None` where there is enough to do without.
    pub fn new(
        sequences: usize,
        kv_heads: usize,
        [max_blocks, block_size]: [usize; 2],
        processors: usize,
    ) -> Option<SplitKv> {
        // A decoding sequence is one thread block a KV head: few sequences leave most of the GPU idle without splits.
        let wanted = BLOCKS_PER_PROCESSOR * processors / (sequences * kv_heads).max(1);
        let num_splits = wanted.min(max_blocks * block_size / MIN_KEYS_PER_SPLIT);
        if num_splits < 2 {
            return None;
        }
        // Whole blocks, so that a split is a sequence with a block table of its own.
        let blocks = max_blocks.div_ceil(num_splits);
        Some(SplitKv { num_splits: max_blocks.div_ceil(blocks), blocks })
    }

    /// Parts that all sequences of a step have at most.
    pub fn most_rows(kv_heads: usize, processors: usize) -> usize {
        (BLOCKS_PER_PROCESSOR * processors / kv_heads).max(1)
    }

    /// Numbers that describe `rows` parts: see [`SplitKv::write`].
    pub fn count(&self, rows: usize) -> usize {
        rows + (rows + 1) + rows * self.blocks
    }

    /// First index of each list in those numbers.
    pub fn starts(rows: usize) -> [usize; 3] {
        [0, rows, 2 * rows + 1]
    }

    /// Describes the parts of `step` as a step would be that has a sequence for each: whose part it is, `[rows]`; keys before each,
    /// `[rows + 1]`; and a block table, `[rows, blocks]`.
    ///
    /// # Panics
    /// If there is too little room, or the step is wider than what this was made for.
    pub fn write(&self, step: &ForwardBatch, numbers: &mut [u32]) {
        let rows = step.sequences() * self.num_splits;
        let (sequence_of, rest) = numbers[..self.count(rows)].split_at_mut(rows);
        let (keys_before, table) = rest.split_at_mut(rows + 1);
        let (cumulative, width, block_size) = (step.cumulative_keys(), step.max_blocks(), step.block_size());
        assert!(width <= self.num_splits * self.blocks, "{width} blocks in {self:?}");
        for sequence in 0..step.sequences() {
            let keys = (cumulative[sequence + 1] - cumulative[sequence]) as usize;
            let share = keys.div_ceil(block_size).div_ceil(self.num_splits);
            let blocks = &step.block_table()[sequence * width..][..width];
            for part in 0..self.num_splits {
                let row = sequence * self.num_splits + part;
                sequence_of[row] = sequence as u32;
                // Of a short sequence the last parts have no keys.
                keys_before[row] = cumulative[sequence] + keys.min(part * share * block_size) as u32;
                let own = blocks.iter().skip(part * share).take(share).chain(std::iter::repeat(&0));
                table[row * self.blocks..][..self.blocks].iter_mut().zip(own).for_each(|(to, &block)| *to = block);
            }
        }
        keys_before[rows] = cumulative[step.sequences()];
    }
}

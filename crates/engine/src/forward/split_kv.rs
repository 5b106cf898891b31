//! Split-KV (Flash-Decoding: Dao, Haziza, Massa and Sizov, 2023): the keys of few long sequences are divided, so that all of a GPU
//! has something to do.
//!
//! Each part of a sequence is attended to as if it were a sequence of its own; what comes of the parts is then joined. Pure
//! arithmetic: it knows blocks of the cache and nothing of GPUs.

use crate::forward::batch::ForwardBatch;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::batch::LogitsRows;
    use crate::schedule::blocks::{BlockPool, BlockTable};
    use crate::schedule::limits::EngineLimits;

    #[test]
    fn only_few_and_long_sequences_are_split() {
        for (sequences, max_blocks, expected) in [
            (1, 8, None),
            (1, 16, Some([2, 8])),
            (1, 128, Some([16, 8])),
            (1, 4096, Some([49, 84])),
            (4, 128, Some([12, 11])),
            (16, 64, Some([3, 22])),
            (24, 4096, Some([2, 2048])),
            (25, 4096, None),
            (64, 64, None),
        ] {
            let split = SplitKv::new(sequences, 8, [max_blocks, 32], 132);
            let found = split.map(|SplitKv { num_splits, blocks }| [num_splits, blocks]);
            assert_eq!(found, expected, "{sequences} sequences of {max_blocks} blocks");
        }
    }

    #[test]
    fn parts_are_never_more_than_there_is_room_for_and_hold_all_blocks() {
        for kv_heads in [1, 2, 8, 200, 1000] {
            for sequences in 1..600 {
                for max_blocks in [1, 7, 100, 1000, 4097] {
                    let Some(split) = SplitKv::new(sequences, kv_heads, [max_blocks, 32], 132) else { continue };
                    assert!(split.num_splits >= 2 && split.num_splits * split.blocks >= max_blocks, "{split:?}");
                    assert!(
                        sequences * split.num_splits <= SplitKv::most_rows(kv_heads, 132),
                        "{sequences}: {split:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn each_key_is_in_one_part_and_parts_follow_each_other() {
        const BLOCK_SIZE: usize = 4;
        let mut pool = BlockPool::new(200, BLOCK_SIZE);
        let mut step = ForwardBatch::with_capacity(&EngineLimits {
            max_num_seqs: 8,
            max_num_batched_tokens: 8,
            max_model_len: 160,
            block_size: BLOCK_SIZE,
            num_blocks: 200,
            num_spare_blocks: 0,
            vocab_size: 10,
        });
        let lengths = [1, 4, 5, 37, 160, 79];
        step.begin(160);
        for length in lengths {
            let mut table = BlockTable::default();
            pool.grow(&mut table, length).unwrap();
            step.push(&[7], length - 1, table.indices(), LogitsRows::Last);
        }
        for split in [
            SplitKv { num_splits: 2, blocks: 20 },
            SplitKv { num_splits: 7, blocks: 6 },
            SplitKv { num_splits: 40, blocks: 1 },
        ] {
            let rows = lengths.len() * split.num_splits;
            let mut numbers = vec![u32::MAX; split.count(rows) + 1];
            split.write(&step, &mut numbers);
            assert_eq!(numbers.pop(), Some(u32::MAX), "written beyond the end");
            let [of, before, table] = SplitKv::starts(rows);
            for (sequence, length) in lengths.into_iter().enumerate() {
                let mut keys = Vec::new();
                for row in sequence * split.num_splits..(sequence + 1) * split.num_splits {
                    assert_eq!(numbers[of + row], sequence as u32);
                    let own = numbers[before + row + 1] - numbers[before + row];
                    let blocks = &numbers[table + row * split.blocks..][..split.blocks];
                    keys.extend(
                        (0..own as usize).map(|key| blocks[key / BLOCK_SIZE] as usize * BLOCK_SIZE + key % BLOCK_SIZE),
                    );
                }
                let blocks = &step.block_table()[sequence * step.max_blocks()..][..step.max_blocks()];
                let expected: Vec<usize> =
                    (0..length).map(|key| blocks[key / BLOCK_SIZE] as usize * BLOCK_SIZE + key % BLOCK_SIZE).collect();
                assert_eq!(keys, expected, "{split:?}, {length} keys");
            }
        }
    }
}

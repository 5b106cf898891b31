//! Split-KV (Flash-Decoding: Dao, Haziza, Massa and Sizov, 2023): the keys of long sequences are divided, so that all of a GPU has
//! something to do until all of it is done.
//!
//! Each part of a sequence is attended to as if it were a sequence of its own; what comes of the parts is then joined. How many parts
//! there may be, and how long, follows from the size of a step alone, as what is recorded must. Which sequences are divided follows
//! from their lengths, and is a matter of numbers that the GPU reads. Pure arithmetic: it knows blocks of the cache and nothing of GPUs.

use flashjob_engine::ForwardBatch;

/// A part is not worth its launches below this.
const MIN_KEYS_PER_SPLIT: usize = 256;

/// Share of the time of whole sequences that parts must be expected to take at most: copies of queries and joining cost some, too.
const WORTHWHILE: f64 = 0.9;

/// Parts of sequences that a GPU attends to at a time which holds `resident_blocks` thread blocks of attention: each part is one for
/// each of `kv_heads`. What is beyond them waits until the first are done: on an H100, which holds 396 of heads of 128, 24 sequences of
/// 4096 tokens in two parts, 384 blocks, took 0.76 of the time of whole ones, and 28 sequences, 448 blocks, 1.2 times it.
pub fn parts_at_a_time(kv_heads: usize, resident_blocks: usize) -> usize {
    (resident_blocks / kv_heads).max(1)
}

/// The keys of a step's decoding sequences in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitKv {
    /// Parts that there is room for, each a row; from the size of the step.
    pub rows: usize,
    /// Blocks that a part has room for: the width of its row of a block table; from the size of the step.
    pub row_blocks: usize,
    /// Blocks of the longest part; from lengths.
    pub part_blocks: usize,
}

impl SplitKv {
    /// Parts for `step` on a GPU that attends to so many `at_a_time`; `None` where whole sequences are as good.
    pub fn new(step: &ForwardBatch, at_a_time: usize) -> Option<SplitKv> {
        let (sequences, block_size) = (step.decodes(), step.block_size());
        let min_blocks = MIN_KEYS_PER_SPLIT.div_ceil(block_size);
        let max_blocks = step.longest_decode_keys().div_ceil(block_size);
        if sequences == 0 || max_blocks < 2 * min_blocks {
            return None;
        }
        // All sequences may be as long as the size allows: they are then divided into as many parts as all of the GPU is busy with. In two
        // at least, so that one of them that is much longer than the rest can be divided beside any number of others.
        let most_parts = (at_a_time / sequences).clamp(2, max_blocks / min_blocks);
        let room = SplitKv { rows: sequences + at_a_time, row_blocks: max_blocks.div_ceil(most_parts), part_blocks: 0 };
        let part_blocks = Work::of(step, at_a_time).best_part(room, min_blocks)?;
        Some(SplitKv { part_blocks, ..room })
    }

    /// Numbers that describe parts of any step within these bounds.
    pub fn most_numbers(max_num_seqs: usize, max_blocks: usize, at_a_time: usize) -> usize {
        let widest = SplitKv { rows: max_num_seqs + at_a_time, row_blocks: max_blocks.div_ceil(2), part_blocks: 0 };
        widest.count(max_num_seqs)
    }

    /// Numbers that describe the parts of `sequences` sequences: see [`SplitKv::write`].
    pub fn count(&self, sequences: usize) -> usize {
        self.starts(sequences)[3] + self.rows * self.row_blocks
    }

    /// First index of each list in those numbers.
    pub fn starts(&self, sequences: usize) -> [usize; 4] {
        let keys_before = self.rows + sequences + 1;
        [0, self.rows, keys_before, keys_before + self.rows + 1]
    }

    /// Describes the parts of `step` as a step would be that has a sequence for each: whose part it is, `[rows]`; parts before each
    /// sequence's first, `[sequences + 1]`; keys before each part, `[rows + 1]`; and a block table, `[rows, row_blocks]`. Rows behind
    /// the last part have no keys.
    ///
    /// # Panics
    /// If there is too little room, or the step is another than what this was made for.
    pub fn write(&self, step: &ForwardBatch, numbers: &mut [u32]) {
        let (sequences, block_size) = (step.decodes(), step.block_size());
        let (sequence_of, rest) = numbers[..self.count(sequences)].split_at_mut(self.rows);
        let (parts_before, rest) = rest.split_at_mut(sequences + 1);
        let (keys_before, table) = rest.split_at_mut(self.rows + 1);
        let (cumulative, width) = (step.cumulative_keys(), step.max_blocks());
        let mut row = 0;
        for sequence in 0..sequences {
            parts_before[sequence] = row as u32;
            let keys = (cumulative[sequence + 1] - cumulative[sequence]) as usize;
            let blocks = keys.div_ceil(block_size);
            let parts = blocks.div_ceil(self.part_blocks);
            let share = blocks.div_ceil(parts);
            let blocks = &step.block_table()[sequence * width..][..blocks];
            for part in 0..parts {
                sequence_of[row] = sequence as u32;
                keys_before[row] = cumulative[sequence] + keys.min(part * share * block_size) as u32;
                let own = blocks.iter().skip(part * share).take(share).chain(std::iter::repeat(&0));
                table[row * self.row_blocks..][..self.row_blocks]
                    .iter_mut()
                    .zip(own)
                    .for_each(|(to, &block)| *to = block);
                row += 1;
            }
        }
        parts_before[sequences] = row as u32;
        sequence_of[row..].fill(0);
        keys_before[row..].fill(cumulative[sequences]);
    }
}

/// Keys that are to be attended to.
struct Work<'a> {
    at_a_time: usize,
    block_size: usize,
    /// `[sequences + 1]`: keys before each sequence's first.
    cumulative_keys: &'a [u32],
    /// Blocks of the longest sequence.
    longest: usize,
}

impl<'a> Work<'a> {
    fn of(step: &'a ForwardBatch, at_a_time: usize) -> Self {
        let (block_size, cumulative_keys) = (step.block_size(), &step.cumulative_keys()[..=step.decodes()]);
        let longest = cumulative_keys.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        Self { at_a_time, block_size, cumulative_keys, longest: (longest as usize).div_ceil(block_size) }
    }

    /// Blocks of the longest part where the longest sequence has so many parts.
    fn part_blocks(&self, parts: usize) -> usize {
        self.longest.div_ceil(parts)
    }

    /// Parts of all sequences where the longest has `parts`.
    fn rows(&self, parts: usize) -> usize {
        let part_keys = (self.part_blocks(parts) * self.block_size) as u32;
        self.cumulative_keys.windows(2).map(|pair| (pair[1] - pair[0]).div_ceil(part_keys) as usize).sum()
    }

    /// Time until all is done, in times of a block: where all parts are begun at once the longest decides, otherwise the longest may
    /// be begun last (Graham, 1969).
    fn time(&self, parts: usize) -> f64 {
        let longest = self.part_blocks(parts) as f64;
        if self.rows(parts) <= self.at_a_time {
            return longest;
        }
        let keys = self.cumulative_keys.last().copied().unwrap_or(0);
        f64::from(keys) / (self.block_size * self.at_a_time) as f64 + longest
    }

    /// Blocks of the longest part in the best division that there is `room` for.
    fn best_part(&self, room: SplitKv, min_blocks: usize) -> Option<usize> {
        // Finer is better as long as all parts are begun at once, and again where they are not.
        let finest = |rows: usize| {
            let (mut least, mut beyond) = (1, self.longest / min_blocks + 1);
            while least + 1 < beyond {
                let parts = least.midpoint(beyond);
                *(if self.rows(parts) <= rows { &mut least } else { &mut beyond }) = parts;
            }
            least
        };
        let fits = |parts: &usize| *parts > 1 && self.part_blocks(*parts) <= room.row_blocks;
        let divided = [finest(self.at_a_time), finest(room.rows)].into_iter().filter(fits);
        let best = divided.min_by(|&one, &other| self.time(one).total_cmp(&self.time(other)))?;
        (self.time(best) < WORTHWHILE * self.time(1)).then(|| self.part_blocks(best))
    }
}

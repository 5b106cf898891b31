//! Sizes of decode steps that a device records once and replays: what is launched then depends on the size alone.
//!
//! A step is filled up to the next size with rows that nobody reads, which cost less than launching hundreds of kernels one
//! by one. Pure arithmetic: what is recorded is not known here.

/// The size of a recorded step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplaySize {
    /// Sequences of one token each.
    pub sequences: usize,
    /// Width of the block table.
    pub max_blocks: usize,
}

/// The sizes there are.
#[derive(Clone, Copy, Debug)]
pub struct ReplaySizes {
    /// Most sequences of a step.
    pub max_sequences: usize,
    /// Blocks of the longest sequence.
    pub max_blocks: usize,
    /// The block that filling rows write to: no sequence has it.
    pub spare_block: u32,
}

/// Fewer blocks than this make no difference.
const FEW_BLOCKS: usize = 4;

impl ReplaySizes {
    /// The smallest size that holds `sequences` of `blocks` blocks each at most, both within what it was made for.
    pub fn at_least(&self, sequences: usize, blocks: usize) -> ReplaySize {
        // Each size is computed twice before it is replayed, and keeps a graph: powers of two, then steps that are about a tenth of the
        // size. Products are computed in tiles of 64 rows or more, so that large sizes lose little by their filling.
        let rounded = match sequences {
            0..8 => sequences.next_power_of_two(),
            8..=64 => sequences.next_multiple_of(8),
            65..=256 => sequences.next_multiple_of(16),
            _ => sequences.next_multiple_of(64),
        };
        // A wider table costs its upload: some of it for many sequences, so that few sizes do.
        let wide = blocks.next_power_of_two().max(FEW_BLOCKS);
        ReplaySize { sequences: rounded.min(self.max_sequences), max_blocks: wide.min(self.max_blocks) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const SIZES: ReplaySizes = ReplaySizes { max_sequences: 1000, max_blocks: 100, spare_block: 7 };

    #[test]
    fn a_size_holds_what_it_is_for_and_is_never_beyond_the_largest() {
        let mut all = HashSet::new();
        for sequences in 1..=1000 {
            for blocks in 1..=100 {
                let size = SIZES.at_least(sequences, blocks);
                assert!((sequences..=1000).contains(&size.sequences), "{sequences}: {size:?}");
                assert!((blocks..=100).contains(&size.max_blocks), "{blocks}: {size:?}");
                all.insert(size);
            }
        }
        // 1, 2, 4, by 8 up to 64, by 16 up to 256, by 64 up to 960, and 1000; 4, 8, 16, 32, 64 and 100.
        assert_eq!(all.len(), (3 + 8 + 12 + 11 + 1) * 6);
    }

    #[test]
    fn little_is_added() {
        for (sequences, blocks, expected) in
            [(1, 1, [1, 4]), (3, 4, [4, 4]), (5, 5, [8, 8]), (9, 33, [16, 64]), (65, 8, [80, 8]), (257, 8, [320, 8])]
        {
            let ReplaySize { sequences, max_blocks } = SIZES.at_least(sequences, blocks);
            assert_eq!([sequences, max_blocks], expected);
        }
        for sequences in 1..=1000 {
            let filled = SIZES.at_least(sequences, 1).sequences - sequences;
            assert!(filled < 8 || 4 * filled <= sequences, "{filled} rows beside {sequences}");
        }
    }
}

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

/// Up to 8 sequences the sizes are powers of two, above that multiples of this.
const SEQUENCES: usize = 8;

/// Fewer blocks than this make no difference.
const FEW_BLOCKS: usize = 4;

impl ReplaySizes {
    /// The smallest size that holds `sequences` of `blocks` blocks each at most, both within what it was made for.
    pub fn at_least(&self, sequences: usize, blocks: usize) -> ReplaySize {
        // Powers of two while padding is cheap, then steps of eight: as vLLM chooses the sizes that it captures.
        let rounded = match sequences {
            0..SEQUENCES => sequences.next_power_of_two(),
            _ => sequences.next_multiple_of(SEQUENCES),
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

    const SIZES: ReplaySizes = ReplaySizes { max_sequences: 250, max_blocks: 100, spare_block: 7 };

    #[test]
    fn a_size_holds_what_it_is_for_and_is_never_beyond_the_largest() {
        let mut all = HashSet::new();
        for sequences in 1..=250 {
            for blocks in 1..=100 {
                let size = SIZES.at_least(sequences, blocks);
                assert!((sequences..=250).contains(&size.sequences), "{sequences}: {size:?}");
                assert!((blocks..=100).contains(&size.max_blocks), "{blocks}: {size:?}");
                all.insert(size);
            }
        }
        // 1, 2, 4, then by 8 up to 248, and 250; 4, 8, 16, 32, 64 and 100.
        assert_eq!(all.len(), (3 + 31 + 1) * 6);
    }

    #[test]
    fn little_is_added() {
        for (sequences, blocks, expected) in
            [(1, 1, [1, 4]), (3, 4, [4, 4]), (5, 5, [8, 8]), (9, 33, [16, 64]), (250, 65, [250, 100])]
        {
            let ReplaySize { sequences, max_blocks } = SIZES.at_least(sequences, blocks);
            assert_eq!([sequences, max_blocks], expected);
        }
    }
}

//! Which blocks of the KV cache belong to which sequence.
//!
//! A [`BlockPool`] hands out blocks and takes them back; a [`BlockTable`] lists those of one sequence in the order of
//! its tokens. This file counts blocks; it knows nothing of what they hold, nor of who is scheduled when.

/// One block of the KV cache. Only a [`BlockPool`] makes them, each exists once and cannot be copied: two tables
/// cannot hold the same one.
#[derive(Debug, PartialEq, Eq)]
struct Block(u32);

/// The blocks that nobody holds.
#[derive(Debug)]
pub struct BlockPool {
    /// Used as a stack: what was returned last is handed out first, so that memory never touched stays untouched.
    free: Vec<Block>,
    total: usize,
    block_tokens: usize,
}

/// The blocks of one sequence, in the order of its tokens. Give them back with [`BlockPool::release`].
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<Block>,
}

/// The pool has fewer free blocks than were asked for; nothing was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBlocks;

impl BlockPool {
    /// All of a cache of `total` blocks, each for `block_tokens` tokens (at least 1).
    pub fn new(total: u32, block_tokens: usize) -> Self {
        Self { free: (0..total).rev().map(Block).collect(), total: total as usize, block_tokens: block_tokens.max(1) }
    }

    /// Tokens a block holds.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Blocks that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that tables hold.
    pub fn used(&self) -> usize {
        self.total - self.free.len()
    }

    /// Blocks that `tokens` tokens need.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Lets `table` hold at least `tokens` tokens. All or nothing.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> Result<(), OutOfBlocks> {
        let missing = self.blocks_for(tokens).saturating_sub(table.blocks.len());
        let kept = self.free.len().checked_sub(missing).ok_or(OutOfBlocks)?;
        table.blocks.extend(self.free.drain(kept..).rev());
        Ok(())
    }

    /// Takes back everything that `table` holds.
    pub fn release(&mut self, table: &mut BlockTable) {
        self.free.extend(table.blocks.drain(..).rev());
    }
}

impl BlockTable {
    /// A table that can grow to `blocks` blocks without allocating.
    pub fn with_capacity(blocks: usize) -> Self {
        Self { blocks: Vec::with_capacity(blocks) }
    }

    /// The blocks' places in the cache, in the order of the sequence's tokens.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.blocks.iter().map(|block| block.0)
    }

    /// Where the token at `position` lives: block × block_tokens + offset; `None` beyond the blocks held.
    pub fn slot(&self, position: usize, block_tokens: usize) -> Option<u32> {
        let block = self.blocks.get(position / block_tokens)?;
        Some(block.0 * block_tokens as u32 + (position % block_tokens) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[derive(Clone, Debug)]
    enum Action {
        Grow { table: usize, tokens: usize },
        Release { table: usize },
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            3 => (0..6usize, 0..200usize).prop_map(|(table, tokens)| Action::Grow { table, tokens }),
            1 => (0..6usize).prop_map(|table| Action::Release { table }),
        ]
    }

    proptest! {
        /// The reference model is one number a table: how many blocks it must hold.
        #[test]
        fn blocks_never_leak_or_alias(
            total in 0..24u32,
            block_tokens in 1..40usize,
            actions in prop::collection::vec(action(), 0..120),
        ) {
            let mut pool = BlockPool::new(total, block_tokens);
            let mut tables: Vec<BlockTable> = (0..6).map(|_| BlockTable::default()).collect();
            let mut expected = [0usize; 6];
            for action in actions {
                match action {
                    Action::Grow { table, tokens } => {
                        let wanted = expected[table].max(tokens.div_ceil(block_tokens));
                        let others: usize = expected.iter().sum::<usize>() - expected[table];
                        let before: Vec<u32> = tables[table].indices().collect();
                        let fits = others + wanted <= total as usize;
                        prop_assert_eq!(pool.grow(&mut tables[table], tokens).is_ok(), fits);
                        if fits {
                            expected[table] = wanted;
                        }
                        let after: Vec<u32> = tables[table].indices().collect();
                        prop_assert_eq!(&after[..before.len()], &before[..], "a block moved");
                    }
                    Action::Release { table } => {
                        pool.release(&mut tables[table]);
                        expected[table] = 0;
                    }
                }
                let held: Vec<u32> = tables.iter().flat_map(|table| table.indices()).collect();
                let distinct: HashSet<u32> = held.iter().copied().collect();
                prop_assert_eq!(held.len(), distinct.len(), "a block is held twice");
                prop_assert!(held.iter().all(|&block| block < total));
                prop_assert_eq!(held.len(), expected.iter().sum::<usize>());
                prop_assert_eq!(pool.used(), held.len());
                prop_assert_eq!(pool.free() + held.len(), total as usize, "a block is lost");
            }
        }

        #[test]
        fn every_position_has_a_slot_of_its_own(tokens in prop::collection::vec(1..100usize, 1..5), block_tokens in 1..40usize) {
            let mut pool = BlockPool::new(1000, block_tokens);
            let mut seen = HashSet::new();
            for length in tokens {
                let mut table = BlockTable::default();
                pool.grow(&mut table, length).unwrap();
                for position in 0..length {
                    prop_assert!(seen.insert(table.slot(position, block_tokens).unwrap()));
                }
                prop_assert_eq!(table.slot(table.blocks.len() * block_tokens, block_tokens), None);
            }
        }
    }
}

//! Blocks of the KV cache and the sequences that hold them (PagedAttention: Kwon et al., 2023).
//!
//! A [`BlockPool`] hands out blocks and takes them back; a [`BlockTable`] lists those of one sequence in the order of
//! its tokens. Where prefixes are cached, a table begins with blocks that other tables may hold too, and goes on with
//! blocks of its own. This file counts blocks; it does not know who is scheduled when, nor what keys and values are.

mod block;
mod prefix_cache;

use block::Block;
use prefix_cache::{PrefixCache, SharedBlock};

/// Blocks of the cache that are in no table.
#[derive(Debug)]
pub struct BlockPool {
    /// Used as a stack: what was returned last is handed out first, so that memory never touched stays untouched.
    free: Vec<Block>,
    /// Blocks that can be found by the tokens they hold; `None` where each block is its holder's alone.
    prefixes: Option<PrefixCache>,
    total: usize,
    block_size: usize,
}

/// The blocks of one sequence, in the order of its tokens. Give them back with [`BlockPool::release`].
#[derive(Debug, Default)]
pub struct BlockTable {
    /// The first ones: full, computed, and perhaps in other tables too.
    shared: Vec<SharedBlock>,
    /// Blocks behind the shared ones, which only this table has.
    own: Vec<Block>,
}

/// The pool has fewer free blocks than were asked for; nothing was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBlocks;

impl BlockPool {
    /// All of a cache of `total` blocks, each for `block_size` tokens (at least 1).
    pub fn new(total: u32, block_size: usize) -> Self {
        let free = (0..total).rev().map(Block).collect();
        Self { free, prefixes: None, total: total as usize, block_size: block_size.max(1) }
    }

    /// The same, but full blocks can be found again by their tokens, also after their holders are gone.
    pub fn with_prefix_cache(total: u32, block_size: usize) -> Self {
        let pool = Self::new(total, block_size);
        Self { prefixes: Some(PrefixCache::new(pool.block_size)), ..pool }
    }

    /// Tokens a block holds.
    #[cfg(test)]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// True where blocks can be found by their tokens.
    pub fn caches_prefixes(&self) -> bool {
        self.prefixes.is_some()
    }

    /// Blocks of the whole cache.
    #[cfg(test)]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Free blocks, those included that could still be found.
    pub fn free(&self) -> usize {
        self.free.len() + self.prefixes.as_ref().map_or(0, PrefixCache::idle)
    }

    /// Blocks that tables hold.
    pub fn used(&self) -> usize {
        self.total - self.free()
    }

    /// Blocks that `tokens` tokens need.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Blocks that `table` lacks to hold `tokens` tokens.
    pub fn missing(&self, table: &BlockTable, tokens: usize) -> usize {
        self.blocks_for(tokens).saturating_sub(table.len())
    }

    /// Lets `table` hold at least `tokens` tokens. All or nothing. Blocks that could still be found go last.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> Result<(), OutOfBlocks> {
        let missing = self.missing(table, tokens);
        if missing > self.free() {
            return Err(OutOfBlocks);
        }
        // Blocks without content first: each block that is evicted may have saved a later request its prefill.
        let evicted = missing.saturating_sub(self.free.len());
        let kept = self.free.len() - (missing - evicted);
        // From the end of the stack, and in the order in which they were returned: memory that was touched is touched again.
        table.own.extend(self.free.drain(kept..).rev());
        if let Some(prefixes) = &mut self.prefixes {
            table.own.extend((0..evicted).map_while(|_| prefixes.evict()));
        }
        Ok(())
    }

    /// Lets an empty `table` begin with the blocks that are known to hold the beginning of `tokens`; returns how many
    /// tokens these are. The last token is not looked for: it must be computed for what comes after it.
    pub fn reuse(&mut self, table: &mut BlockTable, tokens: &[u32]) -> usize {
        let Some(prefixes) = &mut self.prefixes else { return 0 };
        debug_assert_eq!(table.len(), 0, "a table begins with what is shared");
        // Logits come from computing a token: were all of a prompt found, there would be nothing to choose the first one from.
        let wanted = &tokens[..tokens.len().saturating_sub(1)];
        prefixes.share(wanted, &mut table.shared);
        table.shared.len() * self.block_size
    }

    /// The keys and values of `computed`, a sequence's tokens from its first one on, are in the blocks of `table`: those
    /// that are full can be found from now on. A block whose content could be found already is given back for the one
    /// that holds the same.
    pub fn remember(&mut self, table: &mut BlockTable, computed: &[u32]) {
        let Some(prefixes) = &mut self.prefixes else { return };
        // Only full blocks: a block that is still written to would change under those who share it.
        let new = (computed.len() / self.block_size).saturating_sub(table.shared.len());
        for block in table.own.drain(..new) {
            let start = table.shared.len() * self.block_size;
            let tokens = &computed[start..start + self.block_size];
            let (shared, duplicate) = prefixes.insert(table.shared.last(), tokens, block);
            table.shared.push(shared);
            self.free.extend(duplicate);
        }
    }

    /// Takes the blocks of `table` beyond its first `tokens` tokens out of the prefix cache.
    pub fn forget(&mut self, table: &BlockTable, tokens: usize) {
        if let (Some(prefixes), Some(block)) = (&mut self.prefixes, table.shared.get(tokens / self.block_size)) {
            prefixes.forget(block);
        }
    }

    /// Takes back everything that `table` holds.
    pub fn release(&mut self, table: &mut BlockTable) {
        // Reversed, so that the first block of a sequence is on top and is handed out first again.
        self.free.extend(table.own.drain(..).rev());
        if let Some(prefixes) = &mut self.prefixes {
            // From the end: what comes after a block is given up before it.
            table.shared.drain(..).rev().for_each(|block| prefixes.release(block));
        }
    }
}

impl BlockTable {
    /// A table that can grow to `blocks` blocks without allocating.
    pub fn with_capacity(blocks: usize) -> Self {
        Self { shared: Vec::new(), own: Vec::with_capacity(blocks) }
    }

    /// The blocks' places in the cache, in the order of the sequence's tokens.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.shared.iter().map(SharedBlock::index).chain(self.own.iter().map(|block| block.0))
    }

    /// Slot of the token at `position`: block × block_size + offset; `None` beyond the blocks held.
    #[cfg(test)]
    pub fn slot(&self, position: usize, block_size: usize) -> Option<u32> {
        let block = self.indices().nth(position / block_size)?;
        Some(block * block_size as u32 + (position % block_size) as u32)
    }

    /// Tells that some of its blocks may have been computed for another sequence.
    pub fn shares(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Number of blocks that it holds.
    fn len(&self) -> usize {
        self.shared.len() + self.own.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[derive(Clone, Debug)]
    enum PoolAction {
        Grow { table: usize, tokens: usize },
        Release { table: usize },
    }

    fn action() -> impl Strategy<Value = PoolAction> {
        prop_oneof![
            3 => (0..6usize, 0..200usize).prop_map(|(table, tokens)| PoolAction::Grow { table, tokens }),
            1 => (0..6usize).prop_map(|table| PoolAction::Release { table }),
        ]
    }

    proptest! {
        /// The reference model is one number a table: how many blocks it must hold.
        #[test]
        fn blocks_never_leak_or_alias(
            total in 0..24u32,
            block_size in 1..40usize,
            actions in prop::collection::vec(action(), 0..120),
        ) {
            let mut pool = BlockPool::new(total, block_size);
            let mut tables: Vec<BlockTable> = (0..6).map(|_| BlockTable::default()).collect();
            let mut expected = [0usize; 6];
            for action in actions {
                match action {
                    PoolAction::Grow { table, tokens } => {
                        let wanted = expected[table].max(tokens.div_ceil(block_size));
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
                    PoolAction::Release { table } => {
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
        fn every_position_has_a_slot_of_its_own(tokens in prop::collection::vec(1..100usize, 1..5), block_size in 1..40usize) {
            let mut pool = BlockPool::new(1000, block_size);
            let mut seen = HashSet::new();
            for length in tokens {
                let mut table = BlockTable::default();
                pool.grow(&mut table, length).unwrap();
                for position in 0..length {
                    prop_assert!(seen.insert(table.slot(position, block_size).unwrap()));
                }
                prop_assert_eq!(table.slot(table.len() * block_size, block_size), None);
            }
        }
    }
}

//! The blocks of several sequences against a reference that knows no blocks, only which beginnings are cached.
//!
//! Computing a token writes down, in the slot that its table names, all tokens up to it: what real keys and values
//! depend on. So a block that is shared wrongly, found too early or evicted too early shows as a slot that holds another
//! text than its owner believes.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::super::{BlockPool, BlockTable};

const SEQUENCES: usize = 5;

#[derive(Clone, Debug)]
enum Action {
    /// A sequence begins, if it has not begun.
    Start { sequence: usize, prompt: Vec<u32> },
    /// One step: each sequence named computes up to so many tokens; then all are remembered.
    Step { sequences: Vec<usize>, tokens: usize },
    /// One token more is known of a sequence that is computed.
    Generate { sequence: usize, token: u32 },
    /// A sequence ends.
    Release { sequence: usize },
}

/// Two token ids only, so that beginnings are often equal.
fn action() -> impl Strategy<Value = Action> {
    let sequence = || 0..SEQUENCES;
    prop_oneof![
        3 => (sequence(), prop::collection::vec(0..2u32, 1..14))
            .prop_map(|(sequence, prompt)| Action::Start { sequence, prompt }),
        4 => (prop::collection::vec(sequence(), 1..4), 1..14usize)
            .prop_map(|(sequences, tokens)| Action::Step { sequences, tokens }),
        2 => (sequence(), 0..2u32).prop_map(|(sequence, token)| Action::Generate { sequence, token }),
        2 => sequence().prop_map(|sequence| Action::Release { sequence }),
    ]
}

/// A beginning of whole blocks.
#[derive(Default)]
struct Beginning {
    holders: usize,
    idle_since: u64,
}

#[derive(Default)]
struct TrackedSequence {
    tokens: Vec<u32>,
    computed: usize,
    /// Expectation for the table: blocks in all, and the first of them that can be found.
    blocks: usize,
    shared: usize,
    table: BlockTable,
}

struct Pools {
    pool: BlockPool,
    sequences: Vec<TrackedSequence>,
    /// The reference: what can be found.
    cached: BTreeMap<Vec<u32>, Beginning>,
    clock: u64,
    /// By slot: the tokens up to the one whose keys and values are there.
    memory: HashMap<u32, Vec<u32>>,
}

impl Pools {
    fn new(total: u32, block_size: usize) -> Self {
        Self {
            pool: BlockPool::with_prefix_cache(total, block_size),
            sequences: (0..SEQUENCES).map(|_| TrackedSequence::default()).collect(),
            cached: BTreeMap::new(),
            clock: 0,
            memory: HashMap::new(),
        }
    }

    fn own_blocks(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.blocks - sequence.shared).sum()
    }

    fn expected_free(&self) -> usize {
        let held = self.cached.values().filter(|beginning| beginning.holders > 0).count();
        self.pool.total() - held - self.own_blocks()
    }

    fn act(&mut self, action: Action) -> Result<(), TestCaseError> {
        match action {
            Action::Start { sequence, prompt } if self.sequences[sequence].tokens.is_empty() => {
                self.start(sequence, prompt)?;
            }
            Action::Step { sequences, tokens } => {
                for &sequence in &sequences {
                    self.compute(sequence, tokens);
                }
                sequences.iter().for_each(|&sequence| self.remember(sequence));
            }
            Action::Generate { sequence, token } => {
                let TrackedSequence { tokens, computed, .. } = &mut self.sequences[sequence];
                if !tokens.is_empty() && *computed == tokens.len() {
                    tokens.push(token);
                    if !self.grow(sequence)? {
                        self.sequences[sequence].tokens.pop();
                    }
                }
            }
            Action::Release { sequence } => self.release(sequence),
            Action::Start { .. } => {}
        }
        self.check()
    }

    fn start(&mut self, index: usize, prompt: Vec<u32>) -> Result<(), TestCaseError> {
        let block_size = self.pool.block_size();
        let sequence = &mut self.sequences[index];
        sequence.computed = self.pool.reuse(&mut sequence.table, &prompt);
        // Up to the first that is not cached: later ones would have to be computed on top of it.
        let ends = (1..=(prompt.len() - 1) / block_size).map(|block| block * block_size);
        let hits = ends.take_while(|&end| self.cached.contains_key(&prompt[..end])).count();
        prop_assert_eq!(sequence.computed, hits * block_size, "hits of {:?}", &prompt);
        for block in 1..=hits {
            self.cached.get_mut(&prompt[..block * block_size]).unwrap().holders += 1;
        }
        (sequence.shared, sequence.blocks) = (hits, hits);
        sequence.tokens = prompt;
        if !self.grow(index)? {
            self.release(index);
        }
        Ok(())
    }

    fn grow(&mut self, index: usize) -> Result<bool, TestCaseError> {
        let free = self.expected_free();
        let uncached = self.pool.total() - self.cached.len() - self.own_blocks();
        let sequence = &mut self.sequences[index];
        let before: Vec<u32> = sequence.table.indices().collect();
        let missing = sequence.tokens.len().div_ceil(self.pool.block_size()) - sequence.blocks;
        let grown = self.pool.grow(&mut sequence.table, sequence.tokens.len()).is_ok();
        prop_assert_eq!(grown, missing <= free);
        if grown {
            sequence.blocks += missing;
            for _ in uncached..missing {
                let idle = self.cached.iter().filter(|(_, beginning)| beginning.holders == 0);
                let oldest = idle.min_by_key(|(_, beginning)| beginning.idle_since).unwrap().0.clone();
                self.cached.remove(&oldest);
            }
        }
        prop_assert!(self.sequences[index].table.indices().take(before.len()).eq(before), "a block moved");
        Ok(grown)
    }

    fn compute(&mut self, index: usize, most: usize) {
        let TrackedSequence { tokens, computed, table, .. } = &mut self.sequences[index];
        let end = tokens.len().min(*computed + most);
        for position in *computed..end {
            let slot = table.slot(position, self.pool.block_size()).unwrap();
            self.memory.insert(slot, tokens[..=position].to_vec());
        }
        *computed = end;
    }

    fn remember(&mut self, index: usize) {
        let TrackedSequence { tokens, computed, shared, table, .. } = &mut self.sequences[index];
        self.pool.remember(table, &tokens[..*computed]);
        let block_size = self.pool.block_size();
        while (*shared + 1) * block_size <= *computed {
            *shared += 1;
            self.cached.entry(tokens[..*shared * block_size].to_vec()).or_default().holders += 1;
        }
    }

    fn release(&mut self, index: usize) {
        let mut sequence = std::mem::take(&mut self.sequences[index]);
        self.pool.release(&mut sequence.table);
        for block in (1..=sequence.shared).rev() {
            let beginning = self.cached.get_mut(&sequence.tokens[..block * self.pool.block_size()]).unwrap();
            beginning.holders -= 1;
            self.clock += 1;
            beginning.idle_since = self.clock;
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let block_size = self.pool.block_size();
        let mut distinct = HashSet::new();
        let mut handles: HashMap<u32, usize> = HashMap::new();
        let mut own = HashSet::new();
        for sequence in &self.sequences {
            for position in 0..sequence.computed {
                let slot = sequence.table.slot(position, block_size).unwrap();
                prop_assert_eq!(self.memory.get(&slot).map(Vec::as_slice), Some(&sequence.tokens[..=position]));
            }
            prop_assert_eq!(sequence.table.shared.len(), sequence.shared);
            prop_assert_eq!(sequence.table.len(), sequence.blocks);
            distinct.extend(sequence.table.indices());
            sequence.table.shared.iter().for_each(|block| *handles.entry(block.0).or_default() += 1);
            prop_assert!(sequence.table.own.iter().all(|block| own.insert(block.0)), "a block is held twice");
        }
        prop_assert!(own.iter().all(|block| !handles.contains_key(block)), "a block is shared and somebody's own");
        prop_assert!(distinct.iter().all(|&block| (block as usize) < self.pool.total()));
        prop_assert_eq!(self.pool.used(), distinct.len());
        prop_assert_eq!(self.pool.free(), self.expected_free(), "a block is lost");

        let cache = self.pool.prefixes.as_ref().unwrap();
        prop_assert_eq!(cache.nodes.len(), self.cached.len());
        for (block, node) in &cache.nodes {
            prop_assert_eq!(node.holders, handles.get(block).copied().unwrap_or(0), "holders of block {}", block);
        }
        let idle: HashSet<u32> = cache.idle.values().copied().collect();
        prop_assert!(cache.nodes.iter().all(|(block, node)| idle.contains(block) == (node.holders == 0)));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_table_holds_what_its_owner_believes(
        total in 1..24u32,
        block_size in 1..5usize,
        actions in prop::collection::vec(action(), 0..120),
    ) {
        let mut world = Pools::new(total, block_size);
        for action in actions {
            world.act(action)?;
        }
        (0..SEQUENCES).for_each(|sequence| world.release(sequence));
        world.check()?;
        prop_assert_eq!(world.pool.free(), world.pool.total(), "a block is lost");
    }

    /// A pool without prefix cache allocates as ever: the same blocks in the same order, whatever happens.
    #[test]
    fn without_equal_beginnings_the_same_blocks_are_handed_out(
        lengths in prop::collection::vec(1..60usize, 1..20),
        block_size in 1..20usize,
    ) {
        let (mut off, mut on) = (BlockPool::new(1000, block_size), BlockPool::with_prefix_cache(1000, block_size));
        for (length, first) in lengths.into_iter().zip(0..) {
            let tokens: Vec<u32> = std::iter::once(first).chain(1000..).take(length).collect();
            let (mut one, mut other) = (BlockTable::default(), BlockTable::default());
            prop_assert_eq!(on.reuse(&mut other, &tokens), 0);
            prop_assert_eq!(off.reuse(&mut one, &tokens), 0);
            off.grow(&mut one, length).unwrap();
            on.grow(&mut other, length).unwrap();
            on.remember(&mut other, &tokens);
            off.remember(&mut one, &tokens);
            prop_assert!(one.indices().eq(other.indices()));
        }
    }
}

#[test]
fn memory_never_touched_stays_untouched_until_nothing_else_is_left() {
    let mut pool = BlockPool::with_prefix_cache(4, 2);
    let mut serve = |tokens: &[u32]| {
        let mut table = BlockTable::default();
        let reused = pool.reuse(&mut table, tokens);
        pool.grow(&mut table, tokens.len()).unwrap();
        pool.remember(&mut table, tokens);
        let blocks: Vec<u32> = table.indices().collect();
        pool.release(&mut table);
        (reused, blocks)
    };
    assert_eq!(serve(&[1, 2, 3]), (0, vec![0, 1]));
    // Block 1 was never full: nothing is lost with it.
    assert_eq!(serve(&[5, 6, 7]), (0, vec![1, 2]));
    assert_eq!(serve(&[1, 2, 4, 4, 8]), (2, vec![0, 2, 3]));
    // Now 0, 2 and 1 can be found, and 1 has not been held for the longest time.
    assert_eq!(serve(&[9, 9, 9]), (0, vec![3, 1]));
    assert_eq!(serve(&[5, 6, 7]), (0, vec![1, 2]));
    assert_eq!(serve(&[1, 2, 4, 4, 8]), (2, vec![0, 2, 3]));
}

#[test]
fn the_last_token_is_always_left_to_compute() {
    let mut pool = BlockPool::with_prefix_cache(8, 2);
    let tokens = [1, 2, 3, 4];
    let mut first = BlockTable::default();
    assert_eq!(pool.reuse(&mut first, &tokens), 0);
    pool.grow(&mut first, 4).unwrap();
    pool.remember(&mut first, &tokens[..3]);
    let reused: Vec<usize> = (0..=4)
        .map(|length| {
            let mut table = BlockTable::default();
            let reused = pool.reuse(&mut table, &tokens[..length]);
            pool.release(&mut table);
            reused
        })
        .collect();
    assert_eq!(reused, [0, 0, 0, 2, 2]);
    pool.remember(&mut first, &tokens);
    let mut second = BlockTable::default();
    assert_eq!(pool.reuse(&mut second, &tokens), 2);
    // The same content computed twice is kept once.
    pool.grow(&mut second, 4).unwrap();
    assert_eq!(pool.used(), 3);
    pool.remember(&mut second, &tokens);
    assert_eq!(pool.used(), 2);
    assert!(first.indices().eq(second.indices()));
}

#[test]
fn what_is_forgotten_is_not_found_and_not_lost() {
    let mut pool = BlockPool::with_prefix_cache(8, 2);
    let tokens = [1, 2, 3, 4, 5, 6];
    let serve = |pool: &mut BlockPool, table: &mut BlockTable| {
        let reused = pool.reuse(table, &[&tokens[..], &[7]].concat());
        pool.grow(table, tokens.len()).unwrap();
        pool.remember(table, &tokens);
        reused
    };
    let (mut first, mut second, mut third) = (BlockTable::default(), BlockTable::default(), BlockTable::default());
    assert_eq!(serve(&mut pool, &mut first), 0);
    assert_eq!(serve(&mut pool, &mut second), 6);
    // From its second block on, which the other one holds, too.
    pool.forget(&first, 2);
    pool.forget(&second, 2);
    pool.release(&mut first);
    assert_eq!(serve(&mut pool, &mut third), 2);
    assert_eq!(pool.used(), 5, "one that all three began with, and two each of two");
    pool.release(&mut second);
    pool.release(&mut third);
    assert_eq!((pool.used(), pool.free()), (0, 8));
    // What takes the place of the forgotten ones is still known when these are evicted, and all of it can be handed out.
    let mut other = BlockTable::default();
    pool.grow(&mut other, 10).unwrap();
    assert_eq!(serve(&mut pool, &mut first), 6);
    pool.release(&mut first);
    pool.grow(&mut other, 16).unwrap();
    assert_eq!(pool.free(), 0);
    pool.release(&mut other);
    assert_eq!(serve(&mut pool, &mut first), 0);
}

//! Prefix caching by a tree of blocks (RadixAttention: Zheng et al., 2023): blocks are found by the tokens they hold, so that sequences with equal beginnings compute them once.
//!
//! A tree: each node is a full block whose keys and values are computed, its children are the blocks that were seen to
//! follow it, by their tokens. What a block holds depends on all tokens up to its end, and these are the path from the
//! root. Tokens are compared themselves, no hash stands for them, so blocks of different content cannot be taken for
//! each other.
//!
//! Whoever holds a block holds the one before it and lets go of it later. So a block is never held longer, nor was it
//! held more recently, than the one before it: evicting what was not held for the longest time always takes a leaf.
//!
//! This file knows nothing of sequences, nor of when tokens are computed.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::block::Block;

/// One holder's part in a block that others may hold too. Only a [`PrefixCache`] makes them and counts them; they cannot
/// be copied, and must be given back with [`PrefixCache::release`].
#[derive(Debug, PartialEq, Eq)]
pub struct SharedBlock(u32);

/// Invariant of the tree: were a node missing, tokens would be looked up in the wrong place, which no result survives.
const HELD: &str = "a block is in the tree as long as it is held or others follow it";

/// Blocks by the tokens in them.
type Children = HashMap<Rc<[u32]>, u32>;

#[derive(Debug)]
struct Node {
    block: Block,
    /// The block before it; `None` for the first of a sequence.
    parent: Option<u32>,
    /// As in its parent's children.
    tokens: Rc<[u32]>,
    children: Children,
    /// Handles in the world.
    holders: usize,
    /// It is not among its parent's children, whatever is there under its tokens.
    forgotten: bool,
    /// When the last holder let go, on a clock that counts such moments; means something while there are no holders.
    idle_since: u64,
}

/// Tree of full blocks; each path from a root is the beginning of a sequence.
#[derive(Debug)]
pub struct PrefixCache {
    block_size: usize,
    roots: Children,
    /// By the block's place in the cache.
    nodes: HashMap<u32, Node>,
    /// Nodes without holders, by the moment since which they have none.
    idle: BTreeMap<u64, u32>,
    clock: u64,
}

impl SharedBlock {
    /// The block's place in the cache.
    pub fn index(&self) -> u32 {
        self.0
    }
}

impl PrefixCache {
    /// Without blocks; each that comes holds `block_size` tokens.
    pub fn new(block_size: usize) -> Self {
        Self { block_size, roots: Children::new(), nodes: HashMap::new(), idle: BTreeMap::new(), clock: 0 }
    }

    /// Blocks without holders.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Adds to `table`, the beginning of a sequence, the blocks known to hold what `tokens`, the whole sequence, has next.
    pub fn share(&mut self, tokens: &[u32], table: &mut Vec<SharedBlock>) {
        for tokens in tokens.chunks_exact(self.block_size).skip(table.len()) {
            let Some(&index) = self.children(table.last().map(SharedBlock::index)).get(tokens) else { return };
            table.push(self.hold(index));
        }
    }

    /// Takes in `block`, which holds `tokens` and comes after `parent`. Where a block with this content is known, the
    /// caller shares that one and gets its own back.
    pub fn insert(
        &mut self,
        parent: Option<&SharedBlock>,
        tokens: &[u32],
        block: Block,
    ) -> (SharedBlock, Option<Block>) {
        let parent = parent.map(SharedBlock::index);
        // Two sequences may compute the same prompt at the same time: the second one finds the node of the first, and one
        // copy is enough.
        if let Some(&known) = self.children(parent).get(tokens) {
            return (self.hold(known), Some(block));
        }
        let (index, tokens) = (block.0, Rc::<[u32]>::from(tokens));
        self.children_mut(parent).insert(Rc::clone(&tokens), index);
        let node =
            Node { block, parent, tokens, children: Children::new(), holders: 1, forgotten: false, idle_since: 0 };
        self.nodes.insert(index, node);
        (SharedBlock(index), None)
    }

    /// Takes one holder's part back. What nobody holds can still be found until it is evicted.
    pub fn release(&mut self, block: SharedBlock) {
        let node = self.nodes.get_mut(&block.0).expect(HELD);
        node.holders -= 1;
        if node.holders == 0 {
            // A counter, not the time of day: moments must differ, as they are the keys of `idle`.
            self.clock += 1;
            node.idle_since = self.clock;
            self.idle.insert(self.clock, block.0);
        }
    }

    /// Forgets the block that has been without holders for the longest time, and hands it out.
    pub fn evict(&mut self) -> Option<Block> {
        // Least recently used first. A parent is idle no earlier than its children, so this is always a leaf.
        let (_, index) = self.idle.pop_first()?;
        let node = self.nodes.remove(&index)?;
        debug_assert!(node.children.is_empty() && node.holders == 0, "the longest idle block is a leaf");
        if !node.forgotten {
            self.children_mut(node.parent).remove(&node.tokens);
        }
        Some(node.block)
    }

    /// Lets neither `block` nor anything that follows it be found again. Holders keep what they have; what nobody holds is
    /// evicted in its turn.
    pub fn forget(&mut self, block: &SharedBlock) {
        let node = self.nodes.get_mut(&block.0).expect(HELD);
        if !std::mem::replace(&mut node.forgotten, true) {
            let (parent, tokens) = (node.parent, Rc::clone(&node.tokens));
            self.children_mut(parent).remove(&tokens);
        }
    }

    fn hold(&mut self, index: u32) -> SharedBlock {
        let node = self.nodes.get_mut(&index).expect(HELD);
        if node.holders == 0 {
            self.idle.remove(&node.idle_since);
        }
        node.holders += 1;
        SharedBlock(index)
    }

    /// Blocks that are known to follow `parent`.
    fn children(&self, parent: Option<u32>) -> &Children {
        match parent {
            Some(parent) => &self.nodes.get(&parent).expect(HELD).children,
            None => &self.roots,
        }
    }

    fn children_mut(&mut self, parent: Option<u32>) -> &mut Children {
        match parent {
            Some(parent) => &mut self.nodes.get_mut(&parent).expect(HELD).children,
            None => &mut self.roots,
        }
    }
}

#[cfg(test)]
mod tests;

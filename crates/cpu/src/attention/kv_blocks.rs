//! Places of the keys and values of one chunk in the blocks of the KV cache.

use std::ops::Range;

use super::super::cache::{CacheLayout, Stored};
use super::super::memory::LINE_BYTES;
use super::super::simd::Simd;
use super::plan::Unit;
use super::{CHUNK, PagedAttention};

/// Keys that are in one block, whatever its size.
const PART: usize = CacheLayout::BLOCK_SIZE_STEP;

/// Blocks that hold a chunk of keys.
#[derive(Clone, Copy)]
pub(super) struct KvBlocks {
    /// Block of each part of the chunk, and the part's first token in it; anything for parts that no query sees.
    parts: [(usize, usize); CHUNK / PART],
    start: usize,
    end: usize,
}

impl KvBlocks {
    /// Blocks of the chunk that begins at key `first`.
    #[inline(always)]
    pub(super) fn of(args: &PagedAttention<'_>, unit: &Unit, first: usize) -> Self {
        let keys = first.max(unit.keys.start)..(first + CHUNK).min(unit.keys.end);
        let blocks = &args.block_table[unit.sequence * args.max_blocks..][..args.max_blocks];
        let mut parts = [(0, 0); CHUNK / PART];
        // A chunk may lie in several blocks; a part never does, as every block size is a multiple of it.
        for (index, part) in parts.iter_mut().enumerate() {
            let key = first + index * PART;
            if key < keys.end && key + PART > keys.start {
                *part = (blocks[key / args.layout.block_size()] as usize, key % args.layout.block_size());
            }
        }
        Self { parts, start: keys.start - first, end: keys.end - first }
    }

    /// Keys of the chunk that any query of the unit looks at.
    #[inline(always)]
    pub(super) fn within(&self) -> Range<usize> {
        self.start..self.end
    }

    /// First entry of the panel of keys that begins with the key `key` of the chunk.
    #[inline(always)]
    pub(super) fn key(&self, layout: CacheLayout, kv_head: usize, key: usize) -> usize {
        let (block, token) = self.parts[key / PART];
        layout.key(block, kv_head, token + key % PART).0
    }

    /// First entry of the values of the key `key` of the chunk in the panel that begins with the head's entry `i`.
    #[inline(always)]
    pub(super) fn value(&self, layout: CacheLayout, kv_head: usize, key: usize, i: usize) -> usize {
        let (block, token) = self.parts[key / PART];
        layout.value(block, kv_head, token + key % PART, i).0
    }

    /// The first key of the chunk that may be in another block than `key`.
    #[inline(always)]
    pub(super) fn block_end(&self, layout: CacheLayout, key: usize) -> usize {
        let (_, token) = self.parts[key / PART];
        key / PART * PART + layout.block_size() - token
    }

    /// Asks for those parts which `now`, the chunk at hand, does not have: tiles ask for the others one by one, each for
    /// what lies where it reads.
    #[inline(always)]
    pub(super) fn ask_for_what_follows<S: Simd, T: Stored>(
        &self,
        simd: S,
        layout: CacheLayout,
        kv_head: usize,
        now: &KvBlocks,
        k_cache: &[T],
        v_cache: &[T],
    ) {
        let d = layout.shape().head_dim;
        for part in (0..CHUNK).step_by(PART) {
            let has = |of: &KvBlocks| of.start < part + PART && of.end > part;
            if !has(self) || has(now) {
                continue;
            }
            ask_for(simd, &k_cache[self.key(layout, kv_head, part)..][..PART * d]);
            for i in (0..d).step_by(layout.panel()) {
                ask_for(simd, &v_cache[self.value(layout, kv_head, part, i)..][..PART * layout.panel()]);
            }
        }
    }
}

#[inline(always)]
fn ask_for<S: Simd, T>(simd: S, entries: &[T]) {
    for byte in (0..size_of_val(entries)).step_by(LINE_BYTES) {
        simd.prefetch(entries.as_ptr().cast::<u8>().wrapping_add(byte));
    }
}

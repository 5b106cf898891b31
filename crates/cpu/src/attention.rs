//! PagedAttention (Kwon et al., 2023) by FlashAttention's online softmax (Dao et al., 2022), in one pass over the keys; few long
//! sequences are computed by split-KV (Flash-Decoding: Dao et al., 2023).
//!
//! Keys are taken in chunks of [`CHUNK`] at positions that depend on the key's index alone; each row (a query of one
//! head) keeps a running maximum, sum and weighted values. Every [`SPAN`] keys a row starts afresh, and its spans are
//! merged in order by their log-sum-exp: so a long context can be split over threads, and gives the same bits where it is not. Rows that
//! read the same KV head are computed together, and both products run on the tiles of matrix products, which read the
//! blocks as they lie in the cache.

mod block;
mod kv_blocks;
mod plan;
mod row;

use super::cache::Stored;
use super::memory::{Parts, Scratch};
use super::simd::{Kernel, Simd, dispatch, panel_width};
use super::{CacheLayout, CacheSlice, Pool};
use block::Block;
use plan::{AttentionPlan, Unit};

pub(super) use super::tile::CHUNK;

/// Keys after which a row starts afresh.
const SPAN: usize = 512;

/// Arguments of attention in one layer. Sequence `s` has queries `cu_q[s]..cu_q[s + 1]` and `cu_k[s + 1] - cu_k[s]`
/// keys; its last query sees all its keys, and each earlier one sees one fewer (causal, aligned bottom right).
#[derive(Clone, Copy, Debug)]
pub struct PagedAttention<'a> {
    /// Heads, and tokens of a block.
    pub layout: CacheLayout,
    /// Factor that scores `q · k` are scaled by.
    pub scale: f32,
    /// Queries: of token `t`, head `h` the entries from `t * q_stride + h * head_dim` on.
    pub q: &'a [f32],
    /// Entries from one token to the next in `q`: the width of a qkv row where q lives inside one.
    pub q_stride: usize,
    /// Keys: [`CacheLayout::block_keys`].
    pub k_cache: CacheSlice<'a>,
    /// Values, of the same type: [`CacheLayout::block_values`].
    pub v_cache: CacheSlice<'a>,
    /// Cumulative numbers of queries, `[sequences + 1]`, from 0.
    pub cu_q: &'a [u32],
    /// Cumulative numbers of keys, `[sequences + 1]`, from 0.
    pub cu_k: &'a [u32],
    /// Blocks of each sequence in order, `[sequences, max_blocks]`.
    pub block_table: &'a [u32],
    /// Width of `block_table`.
    pub max_blocks: usize,
    /// A query sees this many keys at most, itself included.
    pub window: Option<usize>,
    /// `softcap * tanh(score / softcap)` before the softmax.
    pub softcap: Option<f32>,
}

/// Softmax(scale · q·kᵀ)·v over a paged cache, into `out`, `[tokens, heads * head_dim]`.
///
/// # Panics
/// If lengths do not match, the caches are of different types, a block is out of bounds, the window is 0, or a
/// sequence has fewer keys than queries.
pub fn paged_attention(pool: &Pool, args: &PagedAttention<'_>, out: &mut [f32]) {
    args.check(out.len());
    assert_eq!(args.layout.panel(), panel_width(pool.isa()), "a cache laid out for another instruction set");
    AttentionPlan::with(pool.threads(), args, |plan, partials| {
        let out = Parts::new(out);
        match (args.k_cache, args.v_cache) {
            (CacheSlice::F32(k), CacheSlice::F32(v)) => attend(pool, args, k, v, plan, partials, out),
            (CacheSlice::Bf16(k), CacheSlice::Bf16(v)) => attend(pool, args, k, v, plan, partials, out),
            (CacheSlice::F16(k), CacheSlice::F16(v)) => attend(pool, args, k, v, plan, partials, out),
            _ => panic!("keys and values are cached in different types"),
        }
    });
}

fn attend<T: Stored>(
    pool: &Pool,
    args: &PagedAttention<'_>,
    k_cache: &[T],
    v_cache: &[T],
    plan: &AttentionPlan,
    partials: &mut [f32],
    out: Parts<'_, f32>,
) {
    let partials = Parts::new(partials);
    pool.run_with_scratch(plan.units().len(), |index, scratch| {
        let unit = &plan.units()[index];
        // Most likely this thread's next.
        let next = plan.units().get(index + pool.threads());
        dispatch(pool.available(), Attend { args, k_cache, v_cache, unit, next, partials, out, scratch });
    });
    // SAFETY: all tasks are done.
    let partials: &[f32] = unsafe { partials.part(0..partials.len()) };
    pool.run_with_scratch(1, |_, scratch| {
        for units in plan.units().chunk_by(Unit::continues).filter(|units| units[0].partial.is_some()) {
            dispatch(pool.available(), Merge { args, units, partials, out, scratch });
        }
    });
}

/// Computes one unit.
struct Attend<'a, T> {
    args: &'a PagedAttention<'a>,
    k_cache: &'a [T],
    v_cache: &'a [T],
    unit: &'a Unit,
    next: Option<&'a Unit>,
    partials: Parts<'a, f32>,
    out: Parts<'a, f32>,
    scratch: &'a mut Scratch,
}

impl<T: Stored> Kernel for Attend<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Attend { args, k_cache, v_cache, unit, next, partials, out, scratch } = self;
        let mut block = Block::new(simd, args, unit, scratch);
        block.load_queries(args, unit);
        for span in unit.spans.clone() {
            block.start_span();
            for first in unit.chunks(span) {
                let ahead = match first + CHUNK < unit.keys.end {
                    true => Some((unit, first + CHUNK)),
                    false => next.map(|next| (next, next.keys.start / CHUNK * CHUNK)),
                };
                block.chunk(args, unit, k_cache, v_cache, first, ahead);
            }
            match unit.partial {
                // SAFETY: each unit has its own part.
                Some(start) => block.save(unsafe { partials.part(start..start + block.saved_len()) }),
                None => block.merge_span(),
            }
        }
        if unit.partial.is_none() {
            block.finish(args, unit, out);
        }
    }
}

/// Merges the spans of one block of queries, saved by several units.
struct Merge<'a> {
    args: &'a PagedAttention<'a>,
    units: &'a [Unit],
    partials: &'a [f32],
    out: Parts<'a, f32>,
    scratch: &'a mut Scratch,
}

impl Kernel for Merge<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Merge { args, units, partials, out, scratch } = self;
        let unit = &units[0];
        let mut block = Block::new(simd, args, unit, scratch);
        block.forget();
        for start in units.iter().filter_map(|unit| unit.partial) {
            block.restore(&partials[start..start + block.saved_len()]);
            block.merge_span();
        }
        block.finish(args, unit, out);
    }
}

impl PagedAttention<'_> {
    /// Holds every bound on which the kernel relies.
    fn check(&self, out: usize) {
        let (shape, block_size) = (self.layout.shape(), self.layout.block_size());
        let sequences = self.cu_q.len().saturating_sub(1);
        let tokens = self.cu_q.last().map_or(0, |&last| last as usize);
        let width = shape.out_width();
        assert_eq!(out, tokens * width, "out of {tokens} tokens with {shape:?}");
        assert_eq!(self.cu_q.len(), self.cu_k.len(), "cu_q and cu_k are of the same sequences");
        assert!(self.block_table.len() >= sequences * self.max_blocks, "a row of blocks for each of {sequences}");
        assert!(
            tokens == 0 || (self.q_stride >= width && self.q.len() >= (tokens - 1) * self.q_stride + width),
            "{} entries of q for {tokens} tokens {} apart",
            self.q.len(),
            self.q_stride
        );
        assert!(self.window != Some(0), "a query sees itself at least: a window of 0 keys makes no sense");
        let blocks = self.k_cache.len() / self.layout.block_keys();
        assert_eq!(blocks, self.v_cache.len() / self.layout.block_values(), "as many blocks of values as of keys");
        for sequence in 0..sequences {
            let (first, last) = (self.cu_q[sequence] as usize, self.cu_q[sequence + 1] as usize);
            let (first_key, last_key) = (self.cu_k[sequence] as usize, self.cu_k[sequence + 1] as usize);
            assert!(
                first <= last && first_key <= last_key && last - first <= last_key - first_key,
                "sequence {sequence} has queries {first}..{last} and keys {first_key}..{last_key}"
            );
            let used = (last_key - first_key).div_ceil(block_size);
            assert!(used <= self.max_blocks, "sequence {sequence} has {used} blocks of {}", self.max_blocks);
            for &block in &self.block_table[sequence * self.max_blocks..][..used] {
                assert!((block as usize) < blocks, "sequence {sequence} names block {block} of {blocks}");
            }
        }
    }

    /// The keys that the query at `position` of its sequence sees.
    #[inline(always)]
    fn seen(&self, position: usize) -> std::ops::Range<usize> {
        let end = position + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

//! Paged attention by FlashAttention 2 (Dao, 2023), as candle-flash-attn compiles it.
//!
//! Its C entry point is called directly: candle-flash-attn's own functions allocate a result, and cannot say that queries
//! of a group of heads are rows. Everything that goes in is where it is already.

use std::ffi::{c_int, c_void};

use candle_core::{Result, bail};
// For what it links.
use candle_flash_attn as _;

use super::address::Address;
use super::gpu::Gpu;
use super::split_kv_buffers::SplitKvArguments;
use flashjob_cpu::AttentionShape;
use flashjob_model::Dtype;

/// Arguments of attention in one layer.
#[derive(Clone, Copy, Debug)]
pub struct PagedQueries {
    /// Heads of the rank.
    pub shape: AttentionShape,
    /// Tokens of a block, a multiple of 32.
    pub block_size: usize,
    /// `[tokens, q_stride]`, queries first.
    pub q: Address,
    /// Entries from one token to the next in `q`.
    pub q_stride: usize,
    /// `[blocks, block_size, kv_heads, head_dim]`.
    pub k_cache: Address,
    /// `[blocks, block_size, kv_heads, head_dim]`.
    pub v_cache: Address,
    /// `[tokens, heads · head_dim]`.
    pub out: Address,
    /// `[heads, tokens]`, single precision: written, not read.
    pub softmax_lse: Address,
    /// `[sequences + 1]`: queries before each sequence's first.
    pub cumulative_queries: Address,
    /// `[sequences + 1]`: keys before each sequence's first.
    pub cumulative_keys: Address,
    /// `[sequences, max_blocks]`.
    pub block_table: Address,
    /// Blocks of a row of the table.
    pub max_blocks: usize,
    /// Sequences of the step.
    pub sequences: usize,
    /// Tokens of all sequences together.
    pub tokens: usize,
    /// Queries of the sequence that has most.
    pub longest_queries: usize,
    /// Keys of the sequence that has most.
    pub longest_keys: usize,
    /// Factor that scores `q · k` are scaled by.
    pub scale: f32,
    /// `softcap · tanh(score / softcap)` before the softmax.
    pub softcap: Option<f32>,
    /// A query sees this many keys at most, itself included.
    pub window: Option<usize>,
    /// The same keys in parts, where that is better.
    pub split_kv: Option<SplitKvArguments>,
}

unsafe extern "C" {
    /// `kernels/flash_api.cu` of candle-flash-attn 0.11.1. Strides are in entries.
    fn run_mha(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        out: *const c_void,
        softmax_lse: *const c_void,
        alibi_slopes: *const c_void,
        cu_seqlens_q: *const i32,
        cu_seqlens_k: *const i32,
        q_batch_stride: u32,
        k_batch_stride: u32,
        v_batch_stride: u32,
        o_batch_stride: u32,
        alibi_slopes_batch_stride: u32,
        q_row_stride: u32,
        k_row_stride: u32,
        v_row_stride: u32,
        o_row_stride: u32,
        q_head_stride: u32,
        k_head_stride: u32,
        v_head_stride: u32,
        o_head_stride: u32,
        batch: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        head_dim_rounded: u32,
        softmax_scale: f32,
        seqlen_q: u32,
        seqlen_k: u32,
        seqlen_q_rounded: u32,
        seqlen_k_rounded: u32,
        total_q: u32,
        is_bf16: c_int,
        is_causal: c_int,
        unpadded_lse: c_int,
        window_size_left: c_int,
        window_size_right: c_int,
        softcap: f32,
        block_table: *const i32,
        block_table_batch_stride: u32,
        page_block_size: c_int,
        mm_prefix_ranges: *const i32,
        mm_prefix_range_batch_stride: u32,
        max_mm_prefix_ranges: c_int,
        stream: *mut c_void,
    );
}

/// Queries as the kernel is to see them.
struct QueryRows {
    cumulative: Address,
    batch_stride: usize,
    out_batch_stride: usize,
    row_stride: usize,
    out_row_stride: usize,
    head_stride: usize,
    heads: usize,
    longest: usize,
    causal: bool,
}

impl QueryRows {
    /// One query of each sequence, whose heads that share keys are rows of one head: keys and values are then read once a group. The
    /// query sees all keys, so nothing is causal.
    fn grouped(at: &PagedQueries) -> Self {
        let AttentionShape { heads, kv_heads, head_dim } = at.shape;
        let group = heads / kv_heads;
        Self {
            cumulative: Address::NULL,
            batch_stride: at.q_stride,
            out_batch_stride: heads * head_dim,
            row_stride: head_dim,
            out_row_stride: head_dim,
            head_stride: group * head_dim,
            heads: kv_heads,
            longest: group,
            causal: false,
        }
    }

    /// Queries of all sequences, one behind the other.
    fn causal(at: &PagedQueries) -> Self {
        let AttentionShape { heads, head_dim, .. } = at.shape;
        Self {
            cumulative: at.cumulative_queries,
            batch_stride: 0,
            out_batch_stride: 0,
            row_stride: at.q_stride,
            out_row_stride: heads * head_dim,
            head_stride: head_dim,
            heads,
            longest: at.longest_queries,
            causal: true,
        }
    }

    /// Keys that a query sees to its left and to its right; −1 is no bound. A bound on either side makes the mask local instead of
    /// causal.
    fn bounds(&self, window: Option<usize>, longest_keys: usize) -> (c_int, c_int) {
        match (self.causal, window) {
            (false, _) => (-1, -1),
            (true, None) => (longest_keys as c_int, 0),
            (true, Some(window)) => (window as c_int - 1, 0),
        }
    }
}

impl Gpu {
    /// Queues attention of all sequences: prefill, chunks of it, and decode.
    ///
    /// # Errors
    /// Heads of a width that it does not take.
    pub fn attention(&self, at: &PagedQueries) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim } = at.shape;
        if !head_dim.is_multiple_of(8) || head_dim > 512 {
            bail!("flash attention takes heads of up to 512 entries, a multiple of 8, not of {head_dim}");
        }
        if at.sequences == 0 {
            return Ok(());
        }
        // Decoding is bound by the reading of keys and values, not by arithmetic: heads are grouped where each sequence has one
        // query. A window counts from rows, and would not fit.
        let decodes = at.longest_queries == 1 && at.tokens == at.sequences;
        let grouped = decodes && heads > kv_heads && at.window.is_none();
        match (grouped, at.split_kv) {
            (true, Some(splits)) => return self.split_kv_attention(at, &splits),
            (true, None) => self.run_mha(at, &QueryRows::grouped(at)),
            (false, _) => self.run_mha(at, &QueryRows::causal(at)),
        }
        Ok(())
    }

    /// Queues one call of the kernel.
    fn run_mha(&self, at: &PagedQueries, rows: &QueryRows) {
        let AttentionShape { kv_heads, head_dim, .. } = at.shape;
        let window = at.window.filter(|&window| window < at.longest_keys);
        let (left, right) = rows.bounds(window, at.longest_keys);
        // Keys and values of a token lie side by side over all heads: strides say so, and nothing is copied into another order.
        let token_stride = kv_heads * head_dim;
        let rounded = |length: usize| length.next_multiple_of(128) as u32;
        let null = std::ptr::null();
        // SAFETY: addresses and shapes are as the caller promises; the stream is alive.
        unsafe {
            run_mha(
                at.q.0 as *const c_void,
                at.k_cache.0 as *const c_void,
                at.v_cache.0 as *const c_void,
                at.out.0 as *const c_void,
                at.softmax_lse.0 as *const c_void,
                null,
                rows.cumulative.0 as *const i32,
                at.cumulative_keys.0 as *const i32,
                rows.batch_stride as u32,
                (at.block_size * token_stride) as u32,
                (at.block_size * token_stride) as u32,
                rows.out_batch_stride as u32,
                0,
                rows.row_stride as u32,
                token_stride as u32,
                token_stride as u32,
                rows.out_row_stride as u32,
                rows.head_stride as u32,
                head_dim as u32,
                head_dim as u32,
                rows.head_stride as u32,
                at.sequences as u32,
                rows.heads as u32,
                kv_heads as u32,
                head_dim as u32,
                head_dim.next_multiple_of(32) as u32,
                at.scale,
                rows.longest as u32,
                at.longest_keys as u32,
                rounded(rows.longest),
                rounded(at.longest_keys),
                at.tokens as u32,
                c_int::from(self.dtype == Dtype::Bf16),
                c_int::from(rows.causal && window.is_none()),
                c_int::from(rows.causal),
                left,
                right,
                at.softcap.unwrap_or(0.0),
                at.block_table.0 as *const i32,
                at.max_blocks as u32,
                at.block_size as c_int,
                std::ptr::null(),
                0,
                0,
                self.stream().cu_stream().cast(),
            );
        }
    }

    /// As [`Gpu::attention`], each part of a sequence's keys on its own and then joined. Every part has a copy of its sequence's
    /// query: batches of flash attention are so far apart as they are long.
    fn split_kv_attention(&self, at: &PagedQueries, splits: &SplitKvArguments) -> Result<()> {
        let row_bytes = at.q_stride * size_of::<u16>();
        // Copied once for each split: a few rows, beside keys and values of thousands of tokens.
        self.gather_rows(at.q, splits.sequence_of, splits.queries, splits.rows, row_bytes)?;
        self.attention(&PagedQueries {
            q: splits.queries,
            out: splits.out,
            softmax_lse: splits.softmax_lse,
            cumulative_keys: splits.cumulative_keys,
            block_table: splits.block_table,
            max_blocks: splits.split.blocks,
            sequences: splits.rows,
            tokens: splits.rows,
            longest_keys: splits.split.blocks * at.block_size,
            split_kv: None,
            ..*at
        })?;
        self.join_parts(splits, at.out, at.sequences, at.shape)
    }
}

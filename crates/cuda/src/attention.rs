//! Paged attention by FlashAttention 2 (Dao, 2023), as candle-flash-attn compiles it.
//!
//! Its C entry point is called directly: candle-flash-attn's own functions allocate a result, and cannot say that queries
//! of a group of heads are rows. Everything that goes in is where it is already.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::{DType, Result, Tensor, bail};
// For what it links.
use candle_flash_attn as _;

use super::device_slice::{Bits16, DeviceSlice};
use super::gpu::Gpu;
use super::recording::Queued;
use super::run_mha::RunMha;
use super::split_kv_buffers::SplitKvArguments;
use flashjob_cpu::AttentionShape;
use flashjob_model::Dtype;

/// Arguments of attention in one layer.
#[derive(Clone, Copy, Debug)]
pub struct PagedQueries<'a> {
    /// Heads of the rank.
    pub shape: AttentionShape,
    /// Tokens of a block, a multiple of 32.
    pub block_size: usize,
    /// `[tokens, q_stride]`, queries first.
    pub q: DeviceSlice<'a, Bits16>,
    /// Entries from one token to the next in `q`.
    pub q_stride: usize,
    /// `[blocks, block_size, kv_heads, head_dim]`.
    pub k_cache: DeviceSlice<'a, Bits16>,
    /// `[blocks, block_size, kv_heads, head_dim]`.
    pub v_cache: DeviceSlice<'a, Bits16>,
    /// `[tokens, heads · head_dim]`.
    pub out: DeviceSlice<'a, Bits16>,
    /// `[heads, tokens]`, single precision: written, not read.
    pub softmax_lse: DeviceSlice<'a, f32>,
    /// `[sequences + 1]`: queries before each sequence's first.
    pub cumulative_queries: DeviceSlice<'a, u32>,
    /// `[sequences + 1]`: keys before each sequence's first.
    pub cumulative_keys: DeviceSlice<'a, u32>,
    /// `[sequences, max_blocks]`.
    pub block_table: DeviceSlice<'a, u32>,
    /// Blocks of a row of the table.
    pub max_blocks: usize,
    /// Sequences of the step.
    pub sequences: usize,
    /// Those at its beginning that have one query each.
    pub decodes: usize,
    /// Tokens of all sequences together.
    pub tokens: usize,
    /// Queries of the sequence that has most.
    pub longest_queries: usize,
    /// Keys of the longest of `decodes`.
    pub longest_decode_keys: usize,
    /// Keys of the longest of the others.
    pub longest_prefill_keys: usize,
    /// Factor that scores `q · k` are scaled by.
    pub scale: f32,
    /// `softcap · tanh(score / softcap)` before the softmax.
    pub softcap: Option<f32>,
    /// A query sees this many keys at most, itself included.
    pub window: Option<usize>,
    /// Keys of `decodes` in parts, where that is better.
    pub split_kv: Option<SplitKvArguments<'a>>,
    /// What is computed of a row depends on its own keys alone: prompts and decoding sequences take one way, whatever else is in the
    /// step.
    pub row_by_row: bool,
}

unsafe extern "C" {
    // `attention_launches.h`, of the calling thread.

    /// The first error of its launches since it was taken last, 0 where there was none.
    fn flashjob_take_attention_error() -> c_int;

    /// Has the occupancy calculator asked at each launch.
    fn flashjob_want_attention_blocks(wanted: c_int);

    /// Thread blocks of the last launch that a processor holds at a time.
    fn flashjob_attention_blocks() -> c_int;

    /// CUDA's runtime, which is linked for flash attention alone.
    fn cudaGetErrorString(error: c_int) -> *const c_char;
}

/// Sequences of a step that one call of the kernel is for, side by side.
#[derive(Clone, Copy)]
struct Sequences {
    first: usize,
    count: usize,
    longest_queries: usize,
    longest_keys: usize,
}

impl PagedQueries<'_> {
    fn decoding(&self) -> Sequences {
        Sequences { first: 0, count: self.decodes, longest_queries: 1, longest_keys: self.longest_decode_keys }
    }

    fn prefilling(&self) -> Sequences {
        Sequences {
            first: self.decodes,
            count: self.sequences - self.decodes,
            longest_queries: self.longest_queries,
            longest_keys: self.longest_prefill_keys,
        }
    }

    /// The window, where it hides any key of `sequences`.
    fn window_of(&self, sequences: Sequences) -> Option<usize> {
        // A window is computed by another kernel, which no sequence may choose for the others.
        self.window.filter(|&window| self.row_by_row || window < sequences.longest_keys)
    }
}

/// Queries as the kernel is to see them.
struct QueryRows {
    sequences: Sequences,
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
    /// query sees all keys, so nothing is causal. Sequences begin with the step's first.
    fn grouped(at: &PagedQueries<'_>, sequences: Sequences) -> Self {
        let AttentionShape { heads, kv_heads, head_dim } = at.shape;
        let group = heads / kv_heads;
        Self {
            sequences,
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

    /// Queries of the sequences, one behind the other.
    fn causal(at: &PagedQueries<'_>, sequences: Sequences) -> Self {
        let AttentionShape { heads, head_dim, .. } = at.shape;
        Self {
            sequences,
            batch_stride: 0,
            out_batch_stride: 0,
            row_stride: at.q_stride,
            out_row_stride: heads * head_dim,
            head_stride: head_dim,
            heads,
            longest: sequences.longest_queries,
            causal: true,
        }
    }

    /// Keys that a query sees to its left and to its right; −1 is no bound. A bound on either side makes the mask local instead of
    /// causal.
    fn bounds(&self, window: Option<usize>) -> (c_int, c_int) {
        match (self.causal, window) {
            (false, _) => (-1, -1),
            (true, None) => (self.sequences.longest_keys as c_int, 0),
            (true, Some(window)) => (window as c_int - 1, 0),
        }
    }
}

impl Gpu {
    /// Queues attention of all sequences: decode, then prefill and chunks of it.
    ///
    /// # Errors
    /// Heads of a width that it does not take.
    pub fn attention(&self, at: &PagedQueries<'_>) -> Result<()> {
        let head_dim = at.shape.head_dim;
        if !head_dim.is_multiple_of(8) || head_dim > 512 {
            bail!("flash attention takes heads of up to 512 entries, a multiple of 8, not of {head_dim}");
        }
        // Two calls: one would launch blocks for the longest prompt's queries on behalf of every decoding sequence, and could not group
        // heads.
        if at.decodes > 0 {
            self.decode_attention(at)?;
        }
        if at.sequences > at.decodes {
            self.run_mha(at, &QueryRows::causal(at, at.prefilling()))?;
        }
        Ok(())
    }

    /// Decoding is bound by the reading of keys and values, not by arithmetic: heads are grouped.
    fn decode_attention(&self, at: &PagedQueries<'_>) -> Result<()> {
        let sequences = at.decoding();
        if at.row_by_row {
            return self.run_mha(at, &QueryRows::causal(at, sequences));
        }
        match (at.window_of(sequences), at.split_kv) {
            (None, Some(splits)) => self.split_kv_attention(at, &splits),
            (None, None) => self.run_mha(at, &QueryRows::grouped(at, sequences)),
            // A window counts from rows: where heads are rows, it would not fit.
            (Some(_), _) => self.run_mha(at, &QueryRows::causal(at, sequences)),
        }
    }

    /// Thread blocks of attention of one decoding sequence that the GPU holds at a time, as the occupancy calculator says: of the kernel
    /// that is then launched, once and for nothing.
    ///
    /// # Errors
    /// As [`Gpu::attention`].
    pub fn resident_attention_blocks(&self, shape: AttentionShape, block_size: usize) -> Result<usize> {
        let device = self.device();
        let zeros = |count: usize| Tensor::zeros(count, self.dtype().into(), &device);
        let (qkv, out) = (zeros(shape.qkv_width())?, zeros(shape.out_width())?);
        let (keys, values) = (zeros(block_size * shape.cache_width())?, zeros(block_size * shape.cache_width())?);
        let softmax_lse = Tensor::zeros(shape.heads, DType::F32, &device)?;
        let cumulative = Tensor::from_slice(&[0u32, 1], 2, &device)?;
        let block_table = Tensor::from_slice(&[0u32], 1, &device)?;
        let one = PagedQueries {
            shape,
            block_size,
            q: DeviceSlice::of(&qkv)?,
            q_stride: shape.qkv_width(),
            k_cache: DeviceSlice::of(&keys)?,
            v_cache: DeviceSlice::of(&values)?,
            out: DeviceSlice::of(&out)?,
            softmax_lse: DeviceSlice::of(&softmax_lse)?,
            cumulative_queries: DeviceSlice::of(&cumulative)?,
            cumulative_keys: DeviceSlice::of(&cumulative)?,
            block_table: DeviceSlice::of(&block_table)?,
            max_blocks: 1,
            sequences: 1,
            decodes: 1,
            tokens: 1,
            longest_queries: 1,
            longest_decode_keys: 1,
            longest_prefill_keys: 0,
            scale: 1.0,
            softcap: None,
            window: None,
            split_kv: None,
            row_by_row: self.is_deterministic(),
        };
        // SAFETY: what is written is this thread's alone.
        unsafe { flashjob_want_attention_blocks(1) };
        let launched = self.attention(&one);
        // SAFETY: as above.
        let blocks = unsafe {
            flashjob_want_attention_blocks(0);
            flashjob_attention_blocks()
        };
        launched?;
        let count = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let processors = self.stream().context().attribute(count).w()?;
        Ok(blocks.max(1) as usize * processors as usize)
    }

    /// Queues one call of the kernel.
    fn run_mha(&self, at: &PagedQueries<'_>, rows: &QueryRows) -> Result<()> {
        let AttentionShape { kv_heads, head_dim, .. } = at.shape;
        let Sequences { first, count, longest_keys, .. } = rows.sequences;
        let window = at.window_of(rows.sequences);
        let (left, right) = rows.bounds(window);
        // Rows of queries and of results are counted from the step's first; lengths and tables are those of these sequences.
        let cumulative_keys = at.cumulative_keys.from(first)?;
        let block_table = at.block_table.from(first * at.max_blocks)?;
        // Keys and values of a token lie side by side over all heads: strides say so, and nothing is copied into another order.
        let token_stride = kv_heads * head_dim;
        let length = |length: usize| length as u32;
        let call = RunMha {
            // The last row may end with its queries.
            q_ptr: at.q.pointer((at.tokens - 1) * at.q_stride + at.shape.out_width(), "queries")?,
            k_ptr: at.k_cache.pointer(at.block_size * token_stride, "cached keys")?,
            v_ptr: at.v_cache.pointer(at.block_size * token_stride, "cached values")?,
            o_ptr: at.out.pointer(at.tokens * at.shape.out_width(), "attention")?,
            softmax_lse_ptr: at.softmax_lse.pointer(at.tokens * at.shape.heads, "sums of attention")?,
            alibi_slopes_ptr: null_mut(),
            cu_seqlens_q_ptr: match rows.causal {
                true => at.cumulative_queries.from(first)?.pointer(count + 1, "lengths of queries")?.cast(),
                false => null_mut(),
            },
            cu_seqlens_k_ptr: cumulative_keys.pointer(count + 1, "lengths of keys")?.cast(),
            q_batch_stride: length(rows.batch_stride),
            k_batch_stride: length(at.block_size * token_stride),
            v_batch_stride: length(at.block_size * token_stride),
            o_batch_stride: length(rows.out_batch_stride),
            alibi_slopes_batch_stride: 0,
            q_row_stride: length(rows.row_stride),
            k_row_stride: length(token_stride),
            v_row_stride: length(token_stride),
            o_row_stride: length(rows.out_row_stride),
            q_head_stride: length(rows.head_stride),
            k_head_stride: length(head_dim),
            v_head_stride: length(head_dim),
            o_head_stride: length(rows.head_stride),
            b: length(count),
            h: length(rows.heads),
            h_k: length(kv_heads),
            d: length(head_dim),
            d_rounded: length(head_dim.next_multiple_of(32)),
            softmax_scale: at.scale,
            seqlen_q: length(rows.longest),
            seqlen_k: length(longest_keys),
            seqlen_q_rounded: length(rows.longest.next_multiple_of(128)),
            seqlen_k_rounded: length(longest_keys.next_multiple_of(128)),
            total_q: length(at.tokens),
            is_bf16: c_int::from(self.dtype == Dtype::Bf16),
            is_causal: c_int::from(rows.causal && window.is_none()),
            unpadded_lse: c_int::from(rows.causal),
            window_size_left: left,
            window_size_right: right,
            softcap: at.softcap.unwrap_or(0.0),
            block_table_ptr: block_table.pointer(count * at.max_blocks, "block tables")?.cast(),
            block_table_batch_stride: length(at.max_blocks),
            page_block_size: at.block_size as c_int,
            mm_prefix_ranges_ptr: null_mut(),
            mm_prefix_range_batch_stride: 0,
            max_mm_prefix_ranges: 0,
            stream_ptr: self.stream().cu_stream().cast(),
        };
        let queue = || {
            // SAFETY: slices have the numbers that shapes say, blocks of the table are in the cache as the caller promises, and the stream is
            // alive.
            unsafe { call.queue() };
            launched()
        };
        self.queue("attention", Queued::Kernel, queue)
    }

    /// As [`Gpu::decode_attention`], each part of a sequence's keys on its own and then joined. Every part has a copy of its sequence's
    /// query: batches of flash attention are so far apart as they are long.
    fn split_kv_attention(&self, at: &PagedQueries<'_>, splits: &SplitKvArguments<'_>) -> Result<()> {
        let row_bytes = at.q_stride * size_of::<u16>();
        // Copied once for each part: a few rows, beside keys and values of thousands of tokens.
        self.gather_rows(at.q.bytes(), splits.sequence_of, splits.queries.bytes(), splits.rows, row_bytes)?;
        let parts = PagedQueries {
            q: splits.queries,
            out: splits.out,
            softmax_lse: splits.softmax_lse,
            cumulative_keys: splits.cumulative_keys,
            block_table: splits.block_table,
            max_blocks: splits.row_blocks,
            sequences: splits.rows,
            decodes: splits.rows,
            tokens: splits.rows,
            longest_decode_keys: splits.row_blocks * at.block_size,
            split_kv: None,
            ..*at
        };
        self.run_mha(&parts, &QueryRows::grouped(&parts, parts.decoding()))?;
        self.join_parts(splits, at.out, at.decodes, at.shape)
    }
}

/// Tells whether everything that flash attention has launched on this thread was launched.
fn launched() -> Result<()> {
    // SAFETY: it takes nothing, and what it reads is this thread's.
    let code = unsafe { flashjob_take_attention_error() };
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the runtime has a text that lives for ever for every number.
    let said = unsafe { CStr::from_ptr(cudaGetErrorString(code)) };
    bail!("flash attention could not be launched: {} (error {code} of CUDA's runtime)", said.to_string_lossy())
}

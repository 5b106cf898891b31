//! Launching the kernels of `kernels.cu`, each with arguments that have names and types.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{Result, bail};

use super::address::Address;
use super::gpu::Gpu;
use super::split_kv_buffers::SplitKvArguments;
use flashjob_cpu::AttentionShape;
use flashjob_model::Activation;

/// Threads of a block whose work is spread over many blocks: whole warps, and many enough to hide a memory's latency.
const ROW_THREADS: u32 = 256;

/// The most threads that a block can have (CUDA C++ Programming Guide, "Compute Capabilities").
const MOST_THREADS: usize = 1024;

/// Entries that a thread moves at once, of rows that are whole multiples of it (`PACK`).
const PACK: usize = 8;

/// Packs that a thread of `add_rms_norm` keeps (`KEPT_PACKS`).
const KEPT_PACKS: usize = 4;

/// Threads of a warp.
const WARP: usize = 32;

/// Packs of a row of so many entries.
fn packs(entries: usize) -> usize {
    if entries.is_multiple_of(PACK) { entries / PACK } else { entries }
}

/// Threads of a block that works on one row: one a pack, as far as there are so many.
fn row_threads(packs: usize) -> u32 {
    packs.next_multiple_of(WARP).clamp(WARP, MOST_THREADS) as u32
}

/// Queues a kernel with arguments by value.
macro_rules! launch {
    ($gpu:expr, $function:ident, $blocks:expr, $threads:expr, $($argument:expr),+ $(,)?) => {{
        let stream = $gpu.stream();
        let mut launch = stream.launch_builder(&$gpu.kernels.$function);
        $(let argument = $argument; launch.arg(&argument);)+
        let blocks = ($blocks) as u32;
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: ($threads, 1, 1), shared_mem_bytes: 0 };
        // A grid of nothing is an error to the driver, and nothing to do.
        if blocks > 0 {
            // SAFETY: the arguments are those of the kernel, and shapes are as its caller promises.
            unsafe { launch.launch(config) }.w()?;
        }
        Ok(())
    }};
}

/// Arguments of [`Gpu::add_rms_norm`].
#[derive(Clone, Copy, Debug)]
pub struct AddRmsNormAt {
    /// `[rows, hidden]`, single precision.
    pub residual: Address,
    /// `[rows, hidden]`, or null.
    pub delta: Address,
    /// `[hidden]`, or null.
    pub delta_norm: Address,
    /// `[hidden]`.
    pub weight: Address,
    /// `[rows, hidden]`.
    pub normed: Address,
}

/// Arguments of [`Gpu::rope_and_cache`].
#[derive(Clone, Copy, Debug)]
pub struct RopeAt {
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`.
    pub qkv: Address,
    /// `[positions, half]`, single precision.
    pub cos: Address,
    /// `[positions, half]`, single precision.
    pub sin: Address,
    /// `[tokens]`.
    pub positions: Address,
    /// `[tokens]`.
    pub slots: Address,
    /// `[blocks, page, kv_heads, head_dim]`.
    pub k_cache: Address,
    /// `[blocks, page, kv_heads, head_dim]`.
    pub v_cache: Address,
}

/// Entries of each shape are the caller's promise: the kernels check nothing.
impl Gpu {
    /// See `embed`: `residual` `[tokens, hidden]` from `table`, which has the rows of the tokens `first..end`.
    pub fn embed(
        &self,
        [tokens, hidden]: [usize; 2],
        table: Address,
        token_ids: Address,
        residual: Address,
        rows: std::ops::Range<u32>,
        scale: f32,
    ) -> Result<()> {
        launch!(
            self,
            embed,
            tokens,
            row_threads(packs(hidden)),
            table.0,
            token_ids.0,
            residual.0,
            hidden as u32,
            rows.start,
            rows.end,
            scale
        )
    }

    /// See `add_rms_norm`.
    ///
    /// # Errors
    /// A row that is too long for one block, and the driver's own error.
    pub fn add_rms_norm(&self, [rows, hidden]: [usize; 2], at: AddRmsNormAt, eps: f32) -> Result<()> {
        let AddRmsNormAt { residual, delta, delta_norm, weight, normed } = at;
        if packs(hidden) > MOST_THREADS * KEPT_PACKS {
            bail!(
                "RMSNorm on a GPU takes rows of up to {} packs of {PACK} entries, or of as many single entries where \
                   {PACK} does not divide them, not of {hidden} entries",
                MOST_THREADS * KEPT_PACKS
            );
        }
        launch!(
            self,
            add_rms_norm,
            rows,
            row_threads(packs(hidden)),
            residual.0,
            delta.0,
            delta_norm.0,
            weight.0,
            normed.0,
            hidden as u32,
            eps
        )
    }

    /// See `norm_heads`: `heads` heads of `head_dim` entries from `first_entry` on of each row of `x`, `[rows, row_width]`.
    pub fn norm_heads(
        &self,
        x: Address,
        weight: Address,
        [rows, row_width]: [usize; 2],
        first_entry: usize,
        [heads, head_dim]: [usize; 2],
        eps: f32,
    ) -> Result<()> {
        let blocks = (rows * heads * WARP).div_ceil(ROW_THREADS as usize);
        launch!(
            self,
            norm_heads,
            blocks,
            ROW_THREADS,
            x.0,
            weight.0,
            rows as u32,
            row_width as u32,
            first_entry as u32,
            heads as u32,
            head_dim as u32,
            eps
        )
    }

    /// See `rope_and_cache`; `half` is half the entries of a head that are turned.
    pub fn rope_and_cache(&self, tokens: usize, shape: AttentionShape, half: usize, at: RopeAt) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim } = shape;
        let RopeAt { qkv, cos, sin, positions, slots, k_cache, v_cache } = at;
        // Entries of a row that are moved, in pairs where they are turned.
        let moved = (heads + 2 * kv_heads) * head_dim - (heads + kv_heads) * half;
        launch!(
            self,
            rope_and_cache,
            tokens,
            row_threads(moved / PACK),
            qkv.0,
            cos.0,
            sin.0,
            positions.0,
            slots.0,
            k_cache.0,
            v_cache.0,
            heads as u32,
            kv_heads as u32,
            head_dim as u32,
            half as u32
        )
    }

    /// See `gated`: `activated` is `[rows, width]`.
    pub fn gated(
        &self,
        gate_up: Address,
        activated: Address,
        [rows, width]: [usize; 2],
        activation: Activation,
    ) -> Result<()> {
        let gelu = u32::from(activation == Activation::GeluTanh);
        let blocks = (rows * packs(width)).div_ceil(ROW_THREADS as usize);
        launch!(self, gated, blocks, ROW_THREADS, gate_up.0, activated.0, rows as u32, width as u32, gelu)
    }

    /// See `join_parts`: `out` is `[sequences, heads · head_dim]`.
    pub fn join_parts(
        &self,
        splits: &SplitKvArguments,
        out: Address,
        sequences: usize,
        shape: AttentionShape,
    ) -> Result<()> {
        let AttentionShape { heads, head_dim, .. } = shape;
        launch!(
            self,
            join_parts,
            sequences * heads,
            row_threads(head_dim),
            splits.out.0,
            splits.softmax_lse.0,
            out.0,
            splits.split.num_splits as u32,
            heads as u32,
            head_dim as u32
        )
    }

    /// See `fill_rows`: `y` is `[rows, width]`.
    pub fn fill_rows(&self, bias: Address, y: Address, [rows, width]: [usize; 2]) -> Result<()> {
        let blocks = (rows * width).div_ceil(ROW_THREADS as usize);
        launch!(self, fill_rows, blocks, ROW_THREADS, bias.0, y.0, rows as u32, width as u32)
    }

    /// See `gather_rows`: `to` has `count` rows of `row_bytes` bytes, a multiple of 4.
    pub fn gather_rows(&self, from: Address, rows: Address, to: Address, count: usize, row_bytes: usize) -> Result<()> {
        launch!(self, gather_rows, count, ROW_THREADS, from.0, rows.0, to.0, (row_bytes / 4) as u32)
    }

    /// See `place_columns`: `part`, `[rows, width]`, from `first` on in the rows of `whole`, `[rows, whole_width]`.
    pub fn place_columns(
        &self,
        part: Address,
        whole: Address,
        [rows, width]: [usize; 2],
        whole_width: usize,
        first: usize,
    ) -> Result<()> {
        let blocks = (rows * width).div_ceil(ROW_THREADS as usize);
        launch!(
            self,
            place_columns,
            blocks,
            ROW_THREADS,
            part.0,
            whole.0,
            rows as u32,
            width as u32,
            whole_width as u32,
            first as u32
        )
    }

    /// See `softcap`: of `count` numbers.
    pub fn softcap(&self, x: Address, count: usize, cap: f32) -> Result<()> {
        let blocks = count.div_ceil(ROW_THREADS as usize);
        launch!(self, softcap, blocks, ROW_THREADS, x.0, count as u64, cap)
    }

    /// See `argmax`: of `logits`, `[rows, width]`, into `best`, `[rows]`.
    pub fn argmax(&self, logits: Address, best: Address, [rows, width]: [usize; 2]) -> Result<()> {
        launch!(self, argmax, rows, 4 * ROW_THREADS, logits.0, best.0, width as u32)
    }
}

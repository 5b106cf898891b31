//! Launching the kernels of `kernels.cu` and of the folder `kernels`, each with arguments that have names and types.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{Result, bail};

use super::device_slice::{Bits16, DeviceSlice};
use super::gpu::Gpu;
use super::mask_upload::MasksAt;
use super::recording::Queued;
use super::sampling_lists::ListsAt;
use super::split_kv_buffers::SplitKvArguments;
use flashjob_cpu::{AttentionShape, RowSummary, TokenChoice};
use flashjob_engine::ForwardBatch;
use flashjob_model::Activation;

/// The most threads that a block can have (CUDA C++ Programming Guide, "Compute Capabilities").
const MOST_THREADS: usize = 1024;

/// The least threads of `sample`, which divides a row among warps again and again.
const SAMPLE_THREADS: u32 = 256;

/// Entries that a thread moves at once, of rows that are whole multiples of it (`PACK`).
const PACK: usize = 8;

/// Packs that a thread of `add_rms_norm` keeps (`KEPT_PACKS`).
const KEPT_PACKS: usize = 4;

/// Threads of a warp.
const WARP: usize = 32;

/// Address of nothing, for what a kernel may do without.
const NULL: u64 = 0;

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
        let mut launch = stream.launch_builder(&$gpu.kernels.$function.function);
        $(let argument = $argument; launch.arg(&argument);)+
        let blocks = ($blocks) as u32;
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: ($threads, 1, 1), shared_mem_bytes: 0 };
        // A grid of nothing is an error to the driver, and nothing to do.
        if blocks == 0 {
            return Ok(());
        }
        $gpu.queue(stringify!($function), Queued::Kernel, || {
            // SAFETY: the arguments are those of the kernel, and slices have the numbers that shapes say.
            unsafe { launch.launch(config) }.w().map(|_| ())
        })
    }};
}

/// Tokens of a step, as [`Gpu::embed`] takes them.
#[derive(Clone, Copy, Debug)]
pub struct TokensAt<'a> {
    /// `[tokens]`: see [`flashjob_engine::CHOSEN_BEFORE`].
    pub ids: DeviceSlice<'a, u32>,
    /// Tokens that the step before chose.
    pub chosen: DeviceSlice<'a, u32>,
}

/// Arguments of [`Gpu::add_rms_norm`].
#[derive(Clone, Copy, Debug)]
pub struct AddRmsNormAt<'a> {
    /// `[rows, hidden]`.
    pub residual: DeviceSlice<'a, f32>,
    /// `[rows, hidden]`.
    pub delta: Option<DeviceSlice<'a, Bits16>>,
    /// `[hidden]`.
    pub delta_norm: Option<DeviceSlice<'a, f32>>,
    /// `[hidden]`.
    pub weight: DeviceSlice<'a, f32>,
    /// `[rows, hidden]`.
    pub normed: DeviceSlice<'a, Bits16>,
}

/// Arguments of [`Gpu::rope_and_cache`].
#[derive(Clone, Copy, Debug)]
pub struct RopeAt<'a> {
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`.
    pub qkv: DeviceSlice<'a, Bits16>,
    /// `[positions, half]`.
    pub cos: DeviceSlice<'a, f32>,
    /// `[positions, half]`.
    pub sin: DeviceSlice<'a, f32>,
    /// `[tokens]`.
    pub positions: DeviceSlice<'a, u32>,
    /// `[tokens]`.
    pub slots: DeviceSlice<'a, u32>,
    /// `[blocks, page, kv_heads, head_dim]`.
    pub k_cache: DeviceSlice<'a, Bits16>,
    /// `[blocks, page, kv_heads, head_dim]`.
    pub v_cache: DeviceSlice<'a, Bits16>,
}

/// Each asks its slices for the numbers that its shapes say. What lies in them is the caller's promise: token ids, positions, slots and
/// rows are below what they are indices of.
impl Gpu {
    /// See `embed`: `residual` `[tokens, hidden]` from `table`, which has the rows of the tokens `first..end`.
    pub fn embed(
        &self,
        [tokens, hidden]: [usize; 2],
        table: DeviceSlice<'_, Bits16>,
        step_tokens: TokensAt<'_>,
        residual: DeviceSlice<'_, f32>,
        rows: std::ops::Range<u32>,
        scale: f32,
    ) -> Result<()> {
        launch!(
            self,
            embed,
            tokens,
            row_threads(packs(hidden)),
            table.room(rows.len() * hidden, "an embedding")?,
            step_tokens.ids.room(tokens, "token ids")?,
            step_tokens.chosen.room(0, "chosen tokens")?,
            residual.room(tokens * hidden, "the residual stream")?,
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
    pub fn add_rms_norm(&self, [rows, hidden]: [usize; 2], at: AddRmsNormAt<'_>, eps: f32) -> Result<()> {
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
            residual.room(rows * hidden, "the residual stream")?,
            delta.map_or(Ok(NULL), |delta| delta.room(rows * hidden, "what is added"))?,
            delta_norm.map_or(Ok(NULL), |weight| weight.room(hidden, "weights of a norm"))?,
            weight.room(hidden, "weights of a norm")?,
            normed.room(rows * hidden, "a norm")?,
            hidden as u32,
            eps
        )
    }

    /// See `norm_heads`: `heads` heads of `head_dim` entries from `first_entry` on of each row of `x`, `[rows, row_width]`.
    pub fn norm_heads(
        &self,
        x: DeviceSlice<'_, Bits16>,
        weight: DeviceSlice<'_, f32>,
        [rows, row_width]: [usize; 2],
        first_entry: usize,
        [heads, head_dim]: [usize; 2],
        eps: f32,
    ) -> Result<()> {
        let threads = self.kernels.norm_heads.spread_threads;
        let blocks = (rows * heads * WARP).div_ceil(threads as usize);
        launch!(
            self,
            norm_heads,
            blocks,
            threads,
            x.room(rows * row_width, "heads")?,
            weight.room(head_dim, "weights of a norm")?,
            rows as u32,
            row_width as u32,
            first_entry as u32,
            heads as u32,
            head_dim as u32,
            eps
        )
    }

    /// See `rope_and_cache`; `half` is half the entries of a head that are turned.
    pub fn rope_and_cache(&self, tokens: usize, shape: AttentionShape, half: usize, at: RopeAt<'_>) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim } = shape;
        let RopeAt { qkv, cos, sin, positions, slots, k_cache, v_cache } = at;
        // Entries of a row that are moved, in pairs where they are turned.
        let moved = (heads + 2 * kv_heads) * head_dim - (heads + kv_heads) * half;
        launch!(
            self,
            rope_and_cache,
            tokens,
            row_threads(moved / PACK),
            qkv.room(tokens * shape.qkv_width(), "q, k and v")?,
            cos.room(half, "cosines")?,
            sin.room(half, "sines")?,
            positions.room(tokens, "positions")?,
            slots.room(tokens, "slots")?,
            k_cache.room(shape.cache_width(), "cached keys")?,
            v_cache.room(shape.cache_width(), "cached values")?,
            heads as u32,
            kv_heads as u32,
            head_dim as u32,
            half as u32
        )
    }

    /// See `gated`: `activated` is `[rows, width]`.
    pub fn gated(
        &self,
        gate_up: DeviceSlice<'_, Bits16>,
        activated: DeviceSlice<'_, Bits16>,
        [rows, width]: [usize; 2],
        activation: Activation,
    ) -> Result<()> {
        let gelu = u32::from(activation == Activation::GeluTanh);
        let threads = self.kernels.gated.spread_threads;
        let blocks = (rows * packs(width)).div_ceil(threads as usize);
        let gate_up = gate_up.room(2 * rows * width, "gate and up")?;
        let activated = activated.room(rows * width, "activations")?;
        launch!(self, gated, blocks, threads, gate_up, activated, rows as u32, width as u32, gelu)
    }

    /// See `join_parts`: `out` is `[sequences, heads · head_dim]`.
    pub fn join_parts(
        &self,
        splits: &SplitKvArguments<'_>,
        out: DeviceSlice<'_, Bits16>,
        sequences: usize,
        shape: AttentionShape,
    ) -> Result<()> {
        let AttentionShape { heads, head_dim, .. } = shape;
        launch!(
            self,
            join_parts,
            sequences * heads,
            row_threads(head_dim),
            splits.out.room(splits.rows * shape.out_width(), "parts of attention")?,
            splits.softmax_lse.room(splits.rows * heads, "sums of parts")?,
            splits.parts_before.room(sequences + 1, "numbers of parts")?,
            out.room(sequences * shape.out_width(), "attention")?,
            heads as u32,
            head_dim as u32
        )
    }

    /// See `fill_rows`: `y` is `[rows, width]`.
    pub fn fill_rows(
        &self,
        bias: DeviceSlice<'_, f32>,
        y: DeviceSlice<'_, Bits16>,
        [rows, width]: [usize; 2],
    ) -> Result<()> {
        let threads = self.kernels.fill_rows.spread_threads;
        let blocks = (rows * width).div_ceil(threads as usize);
        let (bias, y) = (bias.room(width, "a bias")?, y.room(rows * width, "rows of a bias")?);
        launch!(self, fill_rows, blocks, threads, bias, y, rows as u32, width as u32)
    }

    /// See `gather_rows`: `to` has `count` rows of `row_bytes` bytes, a multiple of 4.
    pub fn gather_rows(
        &self,
        from: DeviceSlice<'_, u8>,
        rows: DeviceSlice<'_, u32>,
        to: DeviceSlice<'_, u8>,
        count: usize,
        row_bytes: usize,
    ) -> Result<()> {
        let (from, rows) = (from.room(row_bytes, "rows")?, rows.room(count, "numbers of rows")?);
        let to = to.room(count * row_bytes, "gathered rows")?;
        launch!(
            self,
            gather_rows,
            count,
            self.kernels.gather_rows.spread_threads,
            from,
            rows,
            to,
            (row_bytes / 4) as u32
        )
    }

    /// See `place_columns`: `part`, `[rows, width]`, from `first` on in the rows of `whole`, `[rows, whole_width]`.
    pub fn place_columns(
        &self,
        part: DeviceSlice<'_, f32>,
        whole: DeviceSlice<'_, f32>,
        [rows, width]: [usize; 2],
        whole_width: usize,
        first: usize,
    ) -> Result<()> {
        let threads = self.kernels.place_columns.spread_threads;
        let blocks = (rows * width).div_ceil(threads as usize);
        launch!(
            self,
            place_columns,
            blocks,
            threads,
            part.room(rows * width, "a part of the logits")?,
            whole.room(rows * whole_width, "logits")?,
            rows as u32,
            width as u32,
            whole_width as u32,
            first as u32
        )
    }

    /// See `softcap`: of `count` numbers.
    pub fn softcap(&self, x: DeviceSlice<'_, f32>, count: usize, cap: f32) -> Result<()> {
        let threads = self.kernels.softcap.spread_threads;
        let blocks = count.div_ceil(threads as usize);
        launch!(self, softcap, blocks, threads, x.room(count, "logits")?, count as u64, cap)
    }

    /// See `adjust_logits`: of `logits`, `[rows, width]`, those that `step` changes.
    pub(super) fn adjust_logits(
        &self,
        logits: DeviceSlice<'_, f32>,
        [rows, width]: [usize; 2],
        step: &ForwardBatch,
        lists: ListsAt<'_>,
    ) -> Result<()> {
        let (threads, adjusted) = (self.kernels.adjust_logits.spread_threads, step.adjustments().rows().len());
        let logits = logits.room(rows * width, "logits")?;
        let [listed, entries, originals] = adjustments_at(step, lists)?;
        launch!(self, adjust_logits, adjusted, threads, logits, listed, entries, originals, width as u32)
    }

    /// See `summarise_rows`: of `logits`, `[rows, width]`, those whose log-probabilities `step` wants.
    pub(super) fn summarise_rows(
        &self,
        logits: DeviceSlice<'_, f32>,
        [rows, width]: [usize; 2],
        step: &ForwardBatch,
        lists: ListsAt<'_>,
    ) -> Result<()> {
        let threads = row_threads(packs(width)).max(SAMPLE_THREADS);
        let logits = logits.room(rows * width, "logits")?;
        let [wanted, summaries] = logprobs_at(step, lists)?;
        launch!(self, summarise_rows, step.logprobs().len(), threads, logits, wanted, summaries, width as u32)
    }

    /// See `chosen_logits`: of the `tokens` that were chosen from `logits`, `[rows, width]`.
    pub(super) fn chosen_logits(
        &self,
        logits: DeviceSlice<'_, f32>,
        tokens: DeviceSlice<'_, u32>,
        [rows, width]: [usize; 2],
        step: &ForwardBatch,
        lists: ListsAt<'_>,
    ) -> Result<()> {
        let threads = self.kernels.chosen_logits.spread_threads;
        let (logits, tokens) = (logits.room(rows * width, "logits")?, tokens.room(rows, "chosen tokens")?);
        let [listed, entries, originals] = adjustments_at(step, lists)?;
        let [wanted, summaries] = logprobs_at(step, lists)?;
        let adjusted = step.adjustments().rows().len() as u32;
        launch!(
            self,
            chosen_logits,
            step.logprobs().len(),
            threads,
            logits,
            wanted,
            tokens,
            listed,
            entries,
            originals,
            adjusted,
            summaries,
            width as u32
        )
    }

    /// See `mask_logits`: of `count` rows of `logits`, `[rows, width]`.
    pub(super) fn mask_logits(
        &self,
        logits: DeviceSlice<'_, f32>,
        masks: &MasksAt<'_>,
        count: usize,
        [rows, width]: [usize; 2],
    ) -> Result<()> {
        let words = width.div_ceil(WARP);
        launch!(
            self,
            mask_logits,
            count,
            row_threads(width),
            logits.room(rows * width, "logits")?,
            masks.rows.room(count, "rows with a mask")?,
            masks.bits.room(count * words, "masks")?,
            width as u32,
            words as u32
        )
    }

    /// See `sample`: from `logits`, `[rows, width]`, as `choices`, `[rows]`, say, into `tokens`, `[rows]`.
    pub fn sample(
        &self,
        logits: DeviceSlice<'_, f32>,
        choices: DeviceSlice<'_, u8>,
        tokens: DeviceSlice<'_, u32>,
        [rows, width]: [usize; 2],
    ) -> Result<()> {
        let threads = row_threads(packs(width)).max(SAMPLE_THREADS);
        let (logits, tokens) = (logits.room(rows * width, "logits")?, tokens.room(rows, "chosen tokens")?);
        let choices = choices.room(rows * size_of::<TokenChoice>(), "choices")?;
        launch!(self, sample, rows, threads, logits, choices, tokens, width as u32)
    }
}

/// Addresses of the rows that `step` changes, of their entries, and of a number for each of those.
fn adjustments_at(step: &ForwardBatch, lists: ListsAt<'_>) -> Result<[u64; 3]> {
    let (rows, entries) = (step.adjustments().rows(), step.adjustments().entries());
    Ok([
        lists.adjusted.room(size_of_val(rows), "rows that are adjusted")?,
        lists.entries.room(size_of_val(entries), "tokens that are adjusted")?,
        lists.originals.room(size_of::<f32>() * entries.len(), "logits before they are adjusted")?,
    ])
}

/// Addresses of the rows whose log-probabilities `step` wants, and of their summaries.
fn logprobs_at(step: &ForwardBatch, lists: ListsAt<'_>) -> Result<[u64; 2]> {
    let wanted = step.logprobs();
    Ok([
        lists.wanted.room(size_of_val(wanted), "rows with log-probabilities")?,
        lists.summaries.room(size_of::<RowSummary>() * wanted.len(), "summaries of rows")?,
    ])
}

//! The keys of long sequences in parts, each attended to as a sequence of its own: where the parts are described to a GPU, and
//! where what comes of them lies until it is joined.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream};

use super::device_slice::{Bits16, DeviceSlice};
use super::split_kv::{SplitKv, parts_at_a_time};
use super::upload::Upload;
use flashjob_cpu::AttentionShape;
use flashjob_engine::{EngineLimits, ForwardBatch};

/// Room for the parts of any step.
pub(super) struct SplitKvBuffers {
    stream: Arc<CudaStream>,
    at_a_time: usize,
    numbers: Upload,
    queries: CudaSlice<u16>,
    out: CudaSlice<u16>,
    softmax_lse: CudaSlice<f32>,
    /// Parts of the step at hand, where it has any.
    split: Mutex<Option<SplitKv>>,
}

/// Arguments of split-KV attention. Each part of each sequence has a row.
#[derive(Clone, Copy, Debug)]
pub struct SplitKvArguments<'a> {
    /// Parts that there is room for.
    pub rows: usize,
    /// Blocks that a part has room for.
    pub row_blocks: usize,
    /// `[rows]`: the sequence of each.
    pub sequence_of: DeviceSlice<'a, u32>,
    /// `[sequences + 1]`: parts before each sequence's first.
    pub parts_before: DeviceSlice<'a, u32>,
    /// `[rows + 1]`.
    pub cumulative_keys: DeviceSlice<'a, u32>,
    /// `[rows, row_blocks]`.
    pub block_table: DeviceSlice<'a, u32>,
    /// `[rows, (heads + 2 · kv_heads) · head_dim]`, to be written.
    pub queries: DeviceSlice<'a, Bits16>,
    /// `[rows, heads · head_dim]`, to be written.
    pub out: DeviceSlice<'a, Bits16>,
    /// `[rows, heads]`, single precision, to be written.
    pub softmax_lse: DeviceSlice<'a, f32>,
}

impl SplitKvBuffers {
    /// Room for steps within `limits`, on a rank of `shape`, whose GPU holds `resident_blocks` thread blocks of attention at a time.
    pub(super) fn new(
        stream: Arc<CudaStream>,
        limits: &EngineLimits,
        shape: AttentionShape,
        resident_blocks: usize,
    ) -> Result<Self> {
        let at_a_time = parts_at_a_time(shape.kv_heads, resident_blocks);
        // Room for the most parts that any step can have: addresses must not change once they are recorded in a graph.
        let rows = limits.max_num_seqs + at_a_time;
        let numbers = SplitKv::most_numbers(limits.max_num_seqs, limits.max_blocks_per_seq(), at_a_time);
        Ok(Self {
            at_a_time,
            numbers: Upload::new(Arc::clone(&stream), numbers)?,
            queries: stream.alloc_zeros(rows * shape.qkv_width()).w()?,
            out: stream.alloc_zeros(rows * shape.out_width()).w()?,
            softmax_lse: stream.alloc_zeros(rows * shape.heads).w()?,
            split: Mutex::default(),
            stream,
        })
    }

    /// Decides about the parts of `step` and queues the upload of what describes them; tells whether it has any.
    pub(super) fn upload(&self, step: &ForwardBatch) -> Result<bool> {
        let split = SplitKv::new(step, self.at_a_time);
        *self.split.lock().unwrap_or_else(PoisonError::into_inner) = split;
        let Some(split) = split else { return Ok(false) };
        self.numbers.send(|numbers| {
            split.write(step, numbers);
            split.count(step.decodes())
        })?;
        Ok(true)
    }

    /// The parts of `step`, which was uploaded last.
    pub(super) fn of(&self, step: &ForwardBatch) -> Result<Option<SplitKvArguments<'_>>> {
        let Some(split) = *self.split.lock().unwrap_or_else(PoisonError::into_inner) else { return Ok(None) };
        let [sequence_of, parts_before, cumulative_keys, block_table] = split.starts(step.decodes());
        let numbers = self.numbers.numbers();
        Ok(Some(SplitKvArguments {
            rows: split.rows,
            row_blocks: split.row_blocks,
            sequence_of: numbers.from(sequence_of)?,
            parts_before: numbers.from(parts_before)?,
            cumulative_keys: numbers.from(cumulative_keys)?,
            block_table: numbers.from(block_table)?,
            queries: DeviceSlice::of_memory(&self.queries, &self.stream),
            out: DeviceSlice::of_memory(&self.out, &self.stream),
            softmax_lse: DeviceSlice::of_memory(&self.softmax_lse, &self.stream),
        }))
    }
}

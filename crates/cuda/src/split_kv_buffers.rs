//! The keys of few long sequences in parts, each attended to as a sequence of its own: where the parts are described to a GPU, and
//! where what comes of them lies until it is joined.

use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::address::Address;
use super::split_kv::SplitKv;
use super::upload::Upload;
use flashjob_cpu::AttentionShape;
use flashjob_engine::{EngineLimits, ForwardBatch};

/// Room for the parts of any step.
pub(super) struct SplitKvBuffers {
    stream: Arc<CudaStream>,
    shape: AttentionShape,
    processors: usize,
    numbers: Upload,
    queries: CudaSlice<u16>,
    out: CudaSlice<u16>,
    softmax_lse: CudaSlice<f32>,
}

/// Arguments of split-KV attention. Each split of each sequence has a row.
#[derive(Clone, Copy, Debug)]
pub struct SplitKvArguments {
    /// Number and size of splits.
    pub split: SplitKv,
    /// Parts of all sequences.
    pub rows: usize,
    /// `[rows]`: the sequence of each.
    pub sequence_of: Address,
    /// `[rows + 1]`.
    pub cumulative_keys: Address,
    /// `[rows, split.blocks]`.
    pub block_table: Address,
    /// `[rows, (heads + 2 · kv_heads) · head_dim]`, to be written.
    pub queries: Address,
    /// `[rows, heads · head_dim]`, to be written.
    pub out: Address,
    /// `[rows, heads]`, single precision, to be written.
    pub softmax_lse: Address,
}

impl SplitKvBuffers {
    /// Room for steps within `limits`, on a rank of `shape`.
    pub(super) fn new(stream: Arc<CudaStream>, limits: &EngineLimits, shape: AttentionShape) -> Result<Self> {
        let (max_blocks, sequences) = (limits.max_blocks_per_seq(), limits.max_num_seqs);
        let count = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let processors = stream.context().attribute(count).w()? as usize;
        // Room for the most splits that any step can have: addresses must not change once they are recorded in a graph.
        let rows = SplitKv::most_rows(shape.kv_heads, processors);
        // A row has the blocks of its part, rounded up.
        let table = sequences.min(rows) * max_blocks + rows;
        Ok(Self {
            numbers: Upload::new(Arc::clone(&stream), 2 * rows + 1 + table)?,
            queries: stream.alloc_zeros(rows * shape.qkv_width()).w()?,
            out: stream.alloc_zeros(rows * shape.out_width()).w()?,
            softmax_lse: stream.alloc_zeros(rows * shape.heads).w()?,
            stream,
            shape,
            processors,
        })
    }

    /// Queues the upload of what describes the parts of `step`, where it has any.
    pub(super) fn upload(&self, step: &ForwardBatch) -> Result<()> {
        let Some(split) = self.split(step) else { return Ok(()) };
        self.numbers.send(|numbers| {
            split.write(step, numbers);
            split.count(step.sequences() * split.num_splits)
        })
    }

    /// The parts of `step`.
    pub(super) fn of(&self, step: &ForwardBatch) -> Option<SplitKvArguments> {
        let split = self.split(step)?;
        let rows = step.sequences() * split.num_splits;
        let [sequence_of, cumulative_keys, block_table] =
            SplitKv::starts(rows).map(|start| self.numbers.address(start));
        Some(SplitKvArguments {
            split,
            rows,
            sequence_of,
            cumulative_keys,
            block_table,
            queries: Address(self.queries.device_ptr(&self.stream).0),
            out: Address(self.out.device_ptr(&self.stream).0),
            softmax_lse: Address(self.softmax_lse.device_ptr(&self.stream).0),
        })
    }

    /// Depends on nothing but the size of a step, as what is recorded must.
    fn split(&self, step: &ForwardBatch) -> Option<SplitKv> {
        let decodes = step.longest_queries() == 1 && step.tokens() == step.sequences();
        let blocks = [step.max_blocks(), step.block_size()];
        decodes.then(|| SplitKv::new(step.sequences(), self.shape.kv_heads, blocks, self.processors)).flatten()
    }
}

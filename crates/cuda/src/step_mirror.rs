//! A step's numbers where a GPU reads them: one upload a step, to places that never change.

use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::address::Address;
use super::split_kv_buffers::{SplitKvArguments, SplitKvBuffers};
use super::upload::Upload;
use flashjob_cpu::AttentionShape;
use flashjob_engine::{EngineLimits, ForwardBatch};

/// Room on a GPU for a step's numbers, and for what attention writes and nobody reads.
pub struct StepMirror {
    stream: Arc<CudaStream>,
    numbers: Upload,
    softmax_lse: CudaSlice<f32>,
    /// One for each row of logits.
    best: CudaSlice<u32>,
    /// First index of each list in `numbers`.
    starts: [usize; LISTS],
    split_kv: SplitKvBuffers,
}

/// Lists that a step has.
const LISTS: usize = 7;

impl StepMirror {
    /// Room for steps within `limits`, on a rank of `shape`.
    pub(super) fn new(stream: Arc<CudaStream>, limits: &EngineLimits, shape: AttentionShape) -> Result<Self> {
        let starts = starts(limits);
        let count = starts[LISTS - 1] + limits.max_num_seqs * limits.max_blocks_per_seq();
        let numbers = Upload::new(Arc::clone(&stream), count)?;
        let best = stream.alloc_zeros(limits.max_num_seqs).w()?;
        let softmax_lse = stream.alloc_zeros(shape.heads * limits.max_num_batched_tokens).w()?;
        let split_kv = SplitKvBuffers::new(Arc::clone(&stream), limits, shape)?;
        Ok(Self { stream, numbers, softmax_lse, best, starts, split_kv })
    }

    /// Queues the upload of all of `step`.
    pub fn upload(&self, step: &ForwardBatch) -> Result<()> {
        let lists: [&[u32]; LISTS] = [
            step.token_ids(),
            step.positions(),
            step.slots(),
            step.cumulative_queries(),
            step.cumulative_keys(),
            step.logit_rows(),
            step.block_table(),
        ];
        // One copy for all lists: a copy costs some microseconds whatever its size, and a decode step has few of them to lose.
        self.numbers.send(|numbers| {
            let mut end = 0;
            for (start, list) in self.starts.into_iter().zip(lists) {
                end = start + list.len();
                numbers[start..end].copy_from_slice(list);
            }
            end
        })?;
        self.split_kv.upload(step)
    }

    /// Its keys in parts, where they are better attended to so.
    pub fn split_kv(&self, step: &ForwardBatch) -> Option<SplitKvArguments> {
        self.split_kv.of(step)
    }

    /// `[tokens]`.
    pub fn token_ids(&self) -> Address {
        self.list(0)
    }

    /// `[tokens]`.
    pub fn positions(&self) -> Address {
        self.list(1)
    }

    /// `[tokens]`.
    pub fn slots(&self) -> Address {
        self.list(2)
    }

    /// `[sequences + 1]`.
    pub fn cumulative_queries(&self) -> Address {
        self.list(3)
    }

    /// `[sequences + 1]`.
    pub fn cumulative_keys(&self) -> Address {
        self.list(4)
    }

    /// `[rows wanted]`.
    pub fn logit_rows(&self) -> Address {
        self.list(5)
    }

    /// `[sequences, max_blocks]`.
    pub fn block_table(&self) -> Address {
        self.list(6)
    }

    /// `[heads, tokens]`.
    pub fn softmax_lse(&self) -> Address {
        Address(self.softmax_lse.device_ptr(&self.stream).0)
    }

    /// `[rows wanted]`: the tokens with the largest logits, once they are there.
    pub fn best(&self) -> Address {
        Address(self.best.device_ptr(&self.stream).0)
    }

    /// Waits for everything queued so far, and copies as many of [`Self::best`] as `best` is long.
    pub fn download_best(&self, best: &mut [u32]) -> Result<()> {
        self.stream.memcpy_dtoh(&self.best.slice(..best.len()), best).w()?;
        self.stream.synchronize().w()
    }

    fn list(&self, index: usize) -> Address {
        self.numbers.address(self.starts[index])
    }
}

/// Lists begin at multiples of 16 bytes.
fn starts(limits: &EngineLimits) -> [usize; LISTS] {
    let (tokens, sequences) = (limits.max_num_batched_tokens, limits.max_num_seqs);
    let lengths = [tokens, tokens, tokens, sequences + 1, sequences + 1, sequences];
    let mut starts = [0; LISTS];
    for (index, length) in lengths.into_iter().enumerate() {
        // Vector loads of kernels need the alignment.
        starts[index + 1] = (starts[index] + length).next_multiple_of(4);
    }
    starts
}

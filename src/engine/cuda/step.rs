//! A step's numbers where a GPU reads them: one upload a step, to places that never change.
//!
//! They go up from memory that the driver has pinned: a copy from any other may wait for the stream (CUDA driver API, "API
//! synchronization behavior").

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result};

use super::Address;
use crate::engine::step::{Step, StepExtent};

/// Room on a GPU for a step's numbers, and for what attention writes and nobody reads.
pub struct StepMirror {
    stream: Arc<CudaStream>,
    numbers: CudaSlice<u32>,
    log_sums: CudaSlice<f32>,
    /// One for each row of logits.
    best: CudaSlice<u32>,
    /// Where each list begins in `numbers`.
    starts: [usize; LISTS],
    staged: Mutex<Staged>,
}

/// `numbers` on the host, on their way.
struct Staged {
    numbers: PinnedHostSlice<u32>,
    /// The last upload has read them.
    uploaded: CudaEvent,
}

/// Lists that a step has.
const LISTS: usize = 7;

impl StepMirror {
    /// Room for steps of up to `extent`.
    pub(super) fn new(stream: Arc<CudaStream>, extent: StepExtent) -> Result<Self> {
        let starts = starts(extent);
        let count = starts[LISTS - 1] + extent.sequences * extent.max_blocks;
        let numbers = stream.alloc_zeros(count).w()?;
        let best = stream.alloc_zeros(extent.sequences).w()?;
        let log_sums = stream.alloc_zeros(extent.heads * extent.tokens).w()?;
        let context = stream.context();
        // SAFETY: zeros are written to it before anything is read.
        let mut staged = unsafe { context.alloc_pinned_with_flags(count, 0) }.w()?;
        staged.as_mut_slice().w()?.fill(0);
        let staged = Mutex::new(Staged { numbers: staged, uploaded: context.new_event(None).w()? });
        Ok(Self { stream, numbers, log_sums, best, starts, staged })
    }

    /// Queues the upload of all of `step`.
    pub fn upload(&self, step: &Step) -> Result<()> {
        let lists: [&[u32]; LISTS] = [
            step.token_ids(),
            step.positions(),
            step.slots(),
            step.cumulative_queries(),
            step.cumulative_keys(),
            step.logit_rows(),
            step.block_table(),
        ];
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        let Staged { numbers, uploaded } = &mut *staged;
        uploaded.synchronize().w()?;
        let numbers = numbers.as_mut_slice().w()?;
        let mut end = 0;
        for (start, list) in self.starts.into_iter().zip(lists) {
            end = start + list.len();
            numbers[start..end].copy_from_slice(list);
        }
        self.stream.context().bind_to_thread().w()?;
        let (address, _guard) = self.numbers.device_ptr(&self.stream);
        // SAFETY: there is room for all that can be staged, and nobody changes it before it has been read.
        unsafe { result::memcpy_htod_async(address, &numbers[..end], self.stream.cu_stream()) }.w()?;
        uploaded.record(&self.stream).w()
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
    pub fn log_sums(&self) -> Address {
        Address(self.log_sums.device_ptr(&self.stream).0)
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
        Address(self.numbers.device_ptr(&self.stream).0).plus(self.starts[index] * size_of::<u32>())
    }
}

/// Lists begin at multiples of 16 bytes.
fn starts(extent: StepExtent) -> [usize; LISTS] {
    let StepExtent { tokens, sequences, .. } = extent;
    let lengths = [tokens, tokens, tokens, sequences + 1, sequences + 1, sequences];
    let mut starts = [0; LISTS];
    for (index, length) in lengths.into_iter().enumerate() {
        starts[index + 1] = (starts[index] + length).next_multiple_of(4);
    }
    starts
}

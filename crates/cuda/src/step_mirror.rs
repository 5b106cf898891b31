//! A step's numbers where a GPU reads them: one upload a step, to places that never change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream};

use super::device_slice::DeviceSlice;
use super::mask_upload::{MaskUpload, MasksAt};
use super::pinned::Pinned;
use super::sampling_lists::SamplingLists;
use super::split_kv_buffers::{SplitKvArguments, SplitKvBuffers};
use super::upload::Upload;
use flashjob_cpu::{AttentionShape, TokenChoice};
use flashjob_engine::{EngineLimits, ForwardBatch, TokenMasks, Turn};

/// Room on a GPU for a step's numbers, and for what attention writes and nobody reads.
pub struct StepMirror {
    stream: Arc<CudaStream>,
    numbers: Upload,
    softmax_lse: CudaSlice<f32>,
    /// One for each row of logits that a token is chosen from; the next step may begin with them.
    tokens: CudaSlice<u32>,
    /// The same for the host, by turn.
    read: [Mutex<Pinned<u32>>; Turn::COUNT],
    /// First index of each list in `numbers`.
    starts: [usize; LISTS],
    split_kv: SplitKvBuffers,
    lists: SamplingLists,
    masks: MaskUpload,
    /// Keys of a sequence are never divided.
    whole_sequences: bool,
}

/// Lists that a step has.
const LISTS: usize = 8;

impl StepMirror {
    /// Room for steps within `limits`, on a rank of `shape`, whose GPU holds `resident_blocks` thread blocks of attention at a time.
    /// Keys are divided among parts of a sequence unless `whole_sequences` are asked for.
    pub(super) fn new(
        stream: Arc<CudaStream>,
        limits: &EngineLimits,
        shape: AttentionShape,
        resident_blocks: usize,
        whole_sequences: bool,
    ) -> Result<Self> {
        let starts = starts(limits);
        let count = starts[LISTS - 1] + limits.max_num_seqs * limits.max_blocks_per_seq();
        let numbers = Upload::new(Arc::clone(&stream), count)?;
        let tokens = stream.alloc_zeros(limits.max_num_seqs).w()?;
        let for_host = || Ok::<_, candle_core::Error>(Mutex::new(Pinned::zeros(&stream, limits.max_num_seqs)?));
        let read = [for_host()?, for_host()?];
        let softmax_lse = stream.alloc_zeros(shape.heads * limits.max_num_batched_tokens).w()?;
        let split_kv = SplitKvBuffers::new(Arc::clone(&stream), limits, shape, resident_blocks)?;
        let (lists, masks) = (SamplingLists::new(Arc::clone(&stream)), MaskUpload::new(Arc::clone(&stream), limits));
        Ok(Self { stream, numbers, softmax_lse, tokens, read, starts, split_kv, lists, masks, whole_sequences })
    }

    /// Queues the upload of all of `step`; tells whether its keys are attended to in parts.
    pub fn upload(&self, step: &ForwardBatch) -> Result<bool> {
        let lists: [&[u32]; LISTS] = [
            step.token_ids(),
            step.positions(),
            step.slots(),
            step.cumulative_queries(),
            step.cumulative_keys(),
            step.logit_rows(),
            bytemuck::cast_slice(step.choices()),
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
        if self.whole_sequences { Ok(false) } else { self.split_kv.upload(step) }
    }

    /// Lists that few steps have.
    pub(super) fn lists(&self) -> &SamplingLists {
        &self.lists
    }

    /// Queues the upload of masks.
    pub(super) fn upload_masks(&self, masks: &TokenMasks) -> Result<MasksAt<'_>> {
        self.masks.send(masks)
    }

    /// Keys of its decoding sequences in parts, where they are better attended to so.
    pub fn split_kv(&self, step: &ForwardBatch) -> Result<Option<SplitKvArguments<'_>>> {
        self.split_kv.of(step)
    }

    /// `[tokens]`.
    pub fn token_ids(&self) -> Result<DeviceSlice<'_, u32>> {
        self.list(0)
    }

    /// `[tokens]`.
    pub fn positions(&self) -> Result<DeviceSlice<'_, u32>> {
        self.list(1)
    }

    /// `[tokens]`.
    pub fn slots(&self) -> Result<DeviceSlice<'_, u32>> {
        self.list(2)
    }

    /// `[sequences + 1]`.
    pub fn cumulative_queries(&self) -> Result<DeviceSlice<'_, u32>> {
        self.list(3)
    }

    /// `[sequences + 1]`.
    pub fn cumulative_keys(&self) -> Result<DeviceSlice<'_, u32>> {
        self.list(4)
    }

    /// `[rows wanted]`.
    pub fn logit_rows(&self) -> Result<DeviceSlice<'_, u32>> {
        self.list(5)
    }

    /// `[choices]`, each a [`TokenChoice`].
    pub fn choices(&self) -> Result<DeviceSlice<'_, u32>> {
        self.list(6)
    }

    /// `[sequences, max_blocks]`.
    pub fn block_table(&self) -> Result<DeviceSlice<'_, u32>> {
        self.list(7)
    }

    /// `[heads, tokens]`.
    pub fn softmax_lse(&self) -> DeviceSlice<'_, f32> {
        DeviceSlice::of_memory(&self.softmax_lse, &self.stream)
    }

    /// `[choices]`: the tokens that were chosen last, once they are there.
    pub fn tokens(&self) -> DeviceSlice<'_, u32> {
        DeviceSlice::of_memory(&self.tokens, &self.stream)
    }

    /// Queues the copy of the first `count` of [`Self::tokens`] to the host.
    pub fn fetch_tokens(&self, turn: Turn, count: usize) -> Result<()> {
        self.host_tokens(turn).fetch(&self.stream, self.tokens(), count)
    }

    /// Waits for what was fetched last in this turn, and copies as many tokens as `tokens` is long.
    pub fn read_tokens(&self, turn: Turn, tokens: &mut [u32]) -> Result<()> {
        // Nothing was fetched where no token is chosen.
        if !tokens.is_empty() {
            let count = tokens.len();
            tokens.copy_from_slice(&self.host_tokens(turn).fetched()?[..count]);
        }
        Ok(())
    }

    fn host_tokens(&self, turn: Turn) -> MutexGuard<'_, Pinned<u32>> {
        self.read[turn.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self, index: usize) -> Result<DeviceSlice<'_, u32>> {
        self.numbers.numbers().from(self.starts[index])
    }
}

/// Lists begin at multiples of 16 bytes.
fn starts(limits: &EngineLimits) -> [usize; LISTS] {
    let (tokens, sequences) = (limits.max_num_batched_tokens, limits.max_num_seqs);
    let choices = sequences * size_of::<TokenChoice>() / size_of::<u32>();
    let lengths = [tokens, tokens, tokens, sequences + 1, sequences + 1, sequences, choices];
    let mut starts = [0; LISTS];
    for (index, length) in lengths.into_iter().enumerate() {
        // Vector loads of kernels need the alignment.
        starts[index + 1] = (starts[index] + length).next_multiple_of(4);
    }
    starts
}

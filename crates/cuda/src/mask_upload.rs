//! Masks over the vocabulary on their way to a GPU: those of the rows that have one, and the numbers of these rows.

use std::sync::{Arc, OnceLock};

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::CudaStream;

use super::device_slice::DeviceSlice;
use super::upload::Upload;
use flashjob_engine::{EngineLimits, TokenMasks};

/// Room for the masks of one step, taken with the first: most runs have none.
pub(super) struct MaskUpload {
    stream: Arc<CudaStream>,
    most_rows: usize,
    words: usize,
    numbers: OnceLock<Upload>,
}

/// Masks on a GPU.
pub(super) struct MasksAt<'a> {
    /// `[rows]`: numbers of rows of logits.
    pub rows: DeviceSlice<'a, u32>,
    /// `[rows, words]`.
    pub bits: DeviceSlice<'a, u32>,
}

impl MaskUpload {
    pub(super) fn new(stream: Arc<CudaStream>, limits: &EngineLimits) -> Self {
        let words = limits.vocab_size.div_ceil(u32::BITS as usize);
        Self { stream, most_rows: limits.max_num_seqs, words, numbers: OnceLock::new() }
    }

    /// Queues the upload of all of `masks`.
    pub(super) fn send(&self, masks: &TokenMasks) -> Result<MasksAt<'_>> {
        let numbers = match self.numbers.get() {
            Some(numbers) => numbers,
            None => {
                // Room for a mask on every row, so that no later step allocates while another one reads the masks before.
                let made = Upload::new(Arc::clone(&self.stream), self.most_rows * (1 + self.words))?;
                self.numbers.get_or_init(|| made)
            }
        };
        let (rows, bits) = (masks.rows(), masks.bits());
        numbers.send(|numbers| {
            numbers[..rows.len()].copy_from_slice(rows);
            numbers[rows.len()..][..bits.len()].copy_from_slice(bits);
            rows.len() + bits.len()
        })?;
        Ok(MasksAt { rows: numbers.numbers(), bits: numbers.numbers().from(rows.len())? })
    }
}

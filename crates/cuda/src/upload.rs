//! Numbers on their way to a GPU, to a place that never changes.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream};

use super::device_slice::DeviceSlice;
use super::pinned::Pinned;

/// Room on a GPU, and as much on the host.
pub(super) struct Upload {
    stream: Arc<CudaStream>,
    numbers: CudaSlice<u32>,
    staged: Mutex<Pinned<u32>>,
}

impl Upload {
    /// Room for `count` numbers.
    pub(super) fn new(stream: Arc<CudaStream>, count: usize) -> Result<Self> {
        let numbers = stream.alloc_zeros(count).w()?;
        let staged = Mutex::new(Pinned::zeros(&stream, count)?);
        Ok(Self { stream, numbers, staged })
    }

    /// Numbers that there is room for.
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Queues the upload of as many numbers as `write` says it wrote, from the first one on.
    pub(super) fn send(&self, write: impl FnOnce(&mut [u32]) -> usize) -> Result<()> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        staged.copy(&self.stream, self.numbers(), write)
    }

    /// The numbers on the GPU.
    pub(super) fn numbers(&self) -> DeviceSlice<'_, u32> {
        DeviceSlice::of_memory(&self.numbers, &self.stream)
    }
}

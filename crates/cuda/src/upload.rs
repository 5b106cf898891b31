//! Numbers on their way to a GPU, to a place that never changes.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::address::Address;
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

    /// Queues the upload of as many numbers as `write` says it wrote, from the first one on.
    pub(super) fn send(&self, write: impl FnOnce(&mut [u32]) -> usize) -> Result<()> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: there is room for all that can be staged.
        unsafe { staged.copy(&self.stream, self.address(0), write) }
    }

    /// Address of the number with this index.
    pub(super) fn address(&self, index: usize) -> Address {
        Address(self.numbers.device_ptr(&self.stream).0).plus(index * size_of::<u32>())
    }
}

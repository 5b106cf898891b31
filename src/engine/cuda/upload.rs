//! Numbers on their way to a GPU, to a place that never changes.
//!
//! They go up from memory that the driver has pinned: a copy from any other may wait for the stream (CUDA driver API, "API
//! synchronization behavior").

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result};

use super::Address;

/// Room on a GPU, and as much on the host.
pub(super) struct Upload {
    stream: Arc<CudaStream>,
    numbers: CudaSlice<u32>,
    staged: Mutex<Staged>,
}

struct Staged {
    numbers: PinnedHostSlice<u32>,
    /// The last upload has read them.
    uploaded: CudaEvent,
}

impl Upload {
    /// Room for `count` numbers.
    pub(super) fn new(stream: Arc<CudaStream>, count: usize) -> Result<Self> {
        let numbers = stream.alloc_zeros(count).w()?;
        let context = stream.context();
        // SAFETY: zeros are written to it before anything is read.
        let mut staged = unsafe { context.alloc_pinned_with_flags(count, 0) }.w()?;
        staged.as_mut_slice().w()?.fill(0);
        let staged = Mutex::new(Staged { numbers: staged, uploaded: context.new_event(None).w()? });
        Ok(Self { stream, numbers, staged })
    }

    /// Queues the upload of as many numbers as `write` says it wrote, from the first one on.
    pub(super) fn send(&self, write: impl FnOnce(&mut [u32]) -> usize) -> Result<()> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        let Staged { numbers, uploaded } = &mut *staged;
        uploaded.synchronize().w()?;
        let numbers = numbers.as_mut_slice().w()?;
        let count = write(numbers);
        self.stream.context().bind_to_thread().w()?;
        let (address, _guard) = self.numbers.device_ptr(&self.stream);
        // SAFETY: there is room for all that can be staged, and nobody changes it before it has been read.
        unsafe { result::memcpy_htod_async(address, &numbers[..count], self.stream.cu_stream()) }.w()?;
        uploaded.record(&self.stream).w()
    }

    /// Where the number with this index lies.
    pub(super) fn address(&self, index: usize) -> Address {
        Address(self.numbers.device_ptr(&self.stream).0).plus(index * size_of::<u32>())
    }
}

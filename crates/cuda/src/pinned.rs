//! Memory of the host that the driver has pinned: a GPU fetches what lies in it by itself, in the order of a stream.
//!
//! A copy from any other memory is done by the driver, piece by piece, and may wait for the stream (CUDA driver API, "API
//! synchronization behavior").

use bytemuck::Zeroable;
use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaStream, DeviceRepr, PinnedHostSlice, ValidAsZeroBits, result,
};

use super::address::Address;

/// A piece of it, used for one copy after the other.
pub(super) struct Pinned<T> {
    numbers: PinnedHostSlice<T>,
    /// The GPU has what was copied last.
    fetched: CudaEvent,
}

impl<T: DeviceRepr + ValidAsZeroBits + Zeroable + Copy> Pinned<T> {
    /// Room for `count` values, all zero.
    pub(super) fn zeros(stream: &CudaStream, count: usize) -> Result<Self> {
        let context = stream.context();
        // SAFETY: zeros are written to it before anything is read.
        let mut numbers = unsafe { context.alloc_pinned_with_flags(count, 0) }.w()?;
        numbers.as_mut_slice().w()?.fill(T::zeroed());
        Ok(Self { numbers, fetched: context.new_event(None).w()? })
    }

    /// Queues a copy to `to` of as many numbers as `write` says it wrote, from the first one on.
    ///
    /// # Safety
    /// There is room for them at `to`, for as long as work is queued on `stream`.
    pub(super) unsafe fn copy(
        &mut self,
        stream: &CudaStream,
        to: Address,
        write: impl FnOnce(&mut [T]) -> usize,
    ) -> Result<()> {
        self.fetched.synchronize().w()?;
        let numbers = self.numbers.as_mut_slice().w()?;
        let count = write(numbers);
        stream.context().bind_to_thread().w()?;
        // SAFETY: there is room, as the caller promises; nobody changes it or gives it back before it was fetched.
        unsafe { result::memcpy_htod_async(to.0, &numbers[..count], stream.cu_stream()) }.w()?;
        self.fetched.record(stream).w()
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // What is being fetched may not be given back. A driver that fails fetches nothing any more.
        let _ = self.fetched.synchronize();
    }
}

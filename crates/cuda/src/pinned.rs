//! Memory of the host that the driver has pinned: a GPU fetches what lies in it, or leaves something there, by itself, in the order
//! of a stream.
//!
//! A copy from any other memory is done by the driver, piece by piece, and may wait for the stream (CUDA driver API, "API
//! synchronization behavior").

use bytemuck::Zeroable;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaStream, DeviceRepr, PinnedHostSlice, ValidAsZeroBits, result,
};
use candle_core::{Result, bail};

use super::device_slice::{DeviceSlice, Element};

/// A piece of it, used for one copy after the other.
pub(super) struct Pinned<T> {
    numbers: PinnedHostSlice<T>,
    /// The copy that was queued last is done.
    copied: CudaEvent,
}

impl<T: DeviceRepr + ValidAsZeroBits + Zeroable + Copy> Pinned<T> {
    /// Room for `count` values, all zero.
    pub(super) fn zeros(stream: &CudaStream, count: usize) -> Result<Self> {
        let context = stream.context();
        // SAFETY: zeros are written to it before anything is read.
        let mut numbers = unsafe { context.alloc_pinned_with_flags(count, 0) }.w()?;
        numbers.as_mut_slice().w()?.fill(T::zeroed());
        Ok(Self { numbers, copied: context.new_event(None).w()? })
    }

    /// Queues a copy to `to`, which is memory of `stream`'s GPU, of as many numbers as `write` says it wrote, from the first one on.
    ///
    /// # Errors
    /// More numbers than there is room for, and the driver's own.
    pub(super) fn copy<N: Element>(
        &mut self,
        stream: &CudaStream,
        to: DeviceSlice<'_, N>,
        write: impl FnOnce(&mut [T]) -> usize,
    ) -> Result<()> {
        self.copied.synchronize().w()?;
        let numbers = self.numbers.as_mut_slice().w()?;
        let count = write(numbers);
        let to = to.room(count * size_of::<T>() / N::BYTES, "a copy")?;
        stream.context().bind_to_thread().w()?;
        // SAFETY: there is room, and memory is given back in the stream's order; nobody changes the numbers before they were copied.
        unsafe { result::memcpy_htod_async(to, &numbers[..count], stream.cu_stream()) }.w()?;
        self.copied.record(stream).w()
    }

    /// Queues a copy of the first `count` numbers of `from`, which is memory of `stream`'s GPU.
    ///
    /// # Errors
    /// More numbers than there are or is room for, and the driver's own.
    pub(super) fn fetch<N: Element>(
        &mut self,
        stream: &CudaStream,
        from: DeviceSlice<'_, N>,
        count: usize,
    ) -> Result<()> {
        self.copied.synchronize().w()?;
        let numbers = self.numbers.as_mut_slice().w()?;
        let from = from.room(count * size_of::<T>() / N::BYTES, "a copy")?;
        let Some(numbers) = numbers.get_mut(..count) else { bail!("a copy of {count} numbers has no room") };
        stream.context().bind_to_thread().w()?;
        // SAFETY: there are so many and there is room for them; the numbers are looked at, and given back, once they were copied.
        unsafe { result::memcpy_dtoh_async(numbers, from, stream.cu_stream()) }.w()?;
        self.copied.record(stream).w()
    }

    /// Waits for what was fetched last; numbers as they then are.
    ///
    /// # Errors
    /// The failure of what was queued before.
    pub(super) fn fetched(&mut self) -> Result<&[T]> {
        self.copied.synchronize().w()?;
        self.numbers.as_slice().w()
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // What is being copied may not be given back. A driver that fails copies nothing any more.
        let _ = self.copied.synchronize();
    }
}

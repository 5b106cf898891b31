//! Numbers in a GPU's memory: an address with the type and the count of what lies there, borrowed from what holds the memory.
//!
//! A launch takes slices and asks for as many numbers as its shapes say, so that a shape which does not fit is an error and no access
//! beyond an allocation. Work is queued on the GPU's one stream, and memory is given back in that stream's order: a borrow lasts until
//! the work is queued, and need not last until it is done. Recorded steps are replayed with the addresses that they were recorded with:
//! what they read belongs to their rank, as they do (`graph`).

use std::ffi::c_void;
use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{DType, Result, Storage, Tensor, bail};
use half::{bf16, f16};

/// Type of the numbers of a slice.
pub trait Element {
    /// Size of one element in bytes.
    const BYTES: usize;

    /// Tells whether a tensor of `dtype` has such numbers.
    fn is(dtype: DType) -> bool;
}

impl Element for f32 {
    const BYTES: usize = 4;

    fn is(dtype: DType) -> bool {
        dtype == DType::F32
    }
}

impl Element for u32 {
    const BYTES: usize = 4;

    fn is(dtype: DType) -> bool {
        dtype == DType::U32
    }
}

/// Numbers of any type, byte by byte.
impl Element for u8 {
    const BYTES: usize = 1;

    fn is(_dtype: DType) -> bool {
        true
    }
}

/// A number of 16 bits in the format of a GPU's activations, float16 or bfloat16.
#[derive(Clone, Copy, Debug)]
pub struct Bits16;

impl Element for Bits16 {
    const BYTES: usize = 2;

    fn is(dtype: DType) -> bool {
        matches!(dtype, DType::F16 | DType::BF16)
    }
}

/// Numbers of type `T` side by side.
#[derive(Debug)]
pub struct DeviceSlice<'a, T> {
    first: u64,
    count: usize,
    holder: PhantomData<&'a T>,
}

impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceSlice<'_, T> {}

impl<'a, T: Element> DeviceSlice<'a, T> {
    /// All numbers of a tensor.
    ///
    /// # Errors
    /// Numbers that are not on a GPU, do not lie side by side, or are of another type.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("a tensor of this operation is not on the GPU") };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("this operation wants contiguous tensors, not {layout:?}")
        };
        let dtype = storage.dtype();
        if !T::is(dtype) {
            bail!("this operation does not take numbers of type {dtype:?} here");
        }
        let stream = storage.device.cuda_stream();
        // Nothing is tracked by events (see `Gpu::open`): the guard that comes with an address has nothing to do.
        let first = match dtype {
            DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
            DType::F16 => storage.as_cuda_slice::<f16>()?.device_ptr(&stream).0,
            DType::BF16 => storage.as_cuda_slice::<bf16>()?.device_ptr(&stream).0,
            DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(&stream).0,
            other => bail!("this operation does not take numbers of type {other:?}"),
        };
        let bytes = dtype.size_in_bytes();
        let (first, count) = (first + (start * bytes) as u64, (end - start) * bytes / T::BYTES);
        Ok(Self { first, count, holder: PhantomData })
    }

    /// The numbers of a tensor, and those that lie behind them in the same allocation.
    ///
    /// # Errors
    /// As [`DeviceSlice::of`].
    pub fn with_what_follows(tensor: &'a Tensor) -> Result<Self> {
        let own = Self::of(tensor)?;
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("a tensor of this operation is not on the GPU") };
        let numbers = match storage.dtype() {
            DType::F32 => storage.as_cuda_slice::<f32>()?.len(),
            DType::F16 => storage.as_cuda_slice::<f16>()?.len(),
            DType::BF16 => storage.as_cuda_slice::<bf16>()?.len(),
            _ => storage.as_cuda_slice::<u32>()?.len(),
        };
        let bytes = (numbers - layout.start_offset()) * storage.dtype().size_in_bytes();
        Ok(Self { count: bytes / T::BYTES, ..own })
    }

    /// All numbers of an allocation.
    pub(super) fn of_memory<N>(memory: &'a CudaSlice<N>, stream: &CudaStream) -> Self {
        let bytes = memory.len() * size_of::<N>();
        Self { first: memory.device_ptr(stream).0, count: bytes / T::BYTES, holder: PhantomData }
    }

    /// The numbers from the one with this index on.
    ///
    /// # Errors
    /// An index beyond the end.
    pub fn from(self, index: usize) -> Result<Self> {
        if index > self.count {
            bail!("number {index} of {} in a GPU's memory", self.count);
        }
        Ok(Self { first: self.first + (index * T::BYTES) as u64, count: self.count - index, ..self })
    }

    /// The same memory, byte by byte.
    pub fn bytes(self) -> DeviceSlice<'a, u8> {
        DeviceSlice { first: self.first, count: self.count * T::BYTES, holder: PhantomData }
    }

    /// The address, for a call that reads or writes `count` numbers from there on.
    ///
    /// # Errors
    /// Fewer numbers: `what` names them.
    pub fn room(self, count: usize, what: &str) -> Result<u64> {
        if count > self.count {
            bail!("{what} needs {count} numbers, and there are {} in a GPU's memory", self.count);
        }
        Ok(self.first)
    }

    /// As [`DeviceSlice::room`], for calls in C.
    ///
    /// # Errors
    /// As there.
    pub fn pointer(self, count: usize, what: &str) -> Result<*mut c_void> {
        Ok(self.room(count, what)? as *mut c_void)
    }
}

//! Weights on a GPU in the making: rows arrive from any thread and are copied to where they belong.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, result};
use candle_core::{Result, Tensor};
use std::sync::Arc;

use super::{Address, Gpu};
use crate::engine::ops::access::Operand;

/// A matrix that is filled row by row.
pub struct Filling {
    tensor: Tensor,
    stream: Arc<CudaStream>,
}

impl Filling {
    /// Room for `[out, in]` on `gpu`, in its dtype.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn new(gpu: &Gpu, out: usize, in_: usize) -> Result<Self> {
        Ok(Self { tensor: Tensor::zeros((out, in_), gpu.dtype().into(), &gpu.device())?, stream: gpu.stream() })
    }

    /// Copies rows to where row `first` begins.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If these are not whole rows of the matrix.
    pub fn rows<T>(&self, first: usize, rows: &[T]) -> Result<()> {
        let (out, in_) = self.tensor.dims2()?;
        assert!(first * in_ + rows.len() <= out * in_ && rows.len().is_multiple_of(in_), "rows beyond a matrix");
        let Address(start) = Operand::of(&self.tensor).address()?.plus(first * in_ * size_of::<T>());
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: there is room, as asserted; a copy from pageable memory has left it when the call returns.
        unsafe { result::memcpy_htod_async(start, rows, self.stream.cu_stream()) }.w()
    }

    /// The matrix.
    pub fn finish(self) -> Tensor {
        self.tensor
    }
}

//! Weights on a GPU in the making: rows arrive from any thread and are copied to where they belong.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::gpu::Gpu;
use super::staging::Staging;
use crate::forward::ops::access::Operand;

/// A matrix that is filled row by row.
pub struct Filling {
    tensor: Tensor,
    staging: Arc<Staging>,
}

impl Filling {
    /// Room for `[out, in]` on `gpu`, in its dtype.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn new(gpu: &Gpu, out: usize, in_: usize) -> Result<Self> {
        let tensor = Tensor::zeros((out, in_), gpu.dtype().into(), &gpu.device())?;
        Ok(Self { tensor, staging: Arc::clone(&gpu.staging) })
    }

    /// Copies rows to where row `first` begins.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If these are not whole rows of the matrix.
    pub fn rows<T: bytemuck::NoUninit>(&self, first: usize, rows: &[T]) -> Result<()> {
        let (out, in_) = self.tensor.dims2()?;
        assert!(first * in_ + rows.len() <= out * in_ && rows.len().is_multiple_of(in_), "rows beyond a matrix");
        // Row-major, as cuBLAS reads it: rows of any tensor go straight to their place.
        let start = Operand::of(&self.tensor).address()?.plus(first * in_ * size_of::<T>());
        // SAFETY: there is room, as asserted, and the matrix is not given back before the stream has come to it.
        unsafe { self.staging.copy(start, bytemuck::cast_slice(rows)) }
    }

    /// Hands out the filled matrix.
    pub fn finish(self) -> Tensor {
        self.tensor
    }
}

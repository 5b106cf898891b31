//! Products with weights on a GPU, by cuBLAS. Rows of weights arrive from any thread and are copied to where they belong.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::address::Address;
use super::gpu::Gpu;
use super::product::ProductAt;
use flashjob_engine::{Embed, Linear, MatrixBuilder};
use flashjob_model::RowSlice;

/// A matrix that is filled row by row.
pub struct Filling {
    gpu: Arc<Gpu>,
    /// `[out, in]`, row-major, as cuBLAS reads it.
    weight: Tensor,
}

impl Filling {
    /// Room for `[out, in]` on `gpu`, in its dtype.
    ///
    /// # Errors
    /// Memory that is refused.
    pub fn new(gpu: &Arc<Gpu>, [out, in_]: [usize; 2]) -> Result<Self> {
        let weight = Tensor::zeros((out, in_), gpu.dtype().into(), &gpu.device())?;
        Ok(Self { weight, gpu: Arc::clone(gpu) })
    }

    /// Copies rows to where row `first` begins.
    ///
    /// # Panics
    /// If these are not whole rows of the matrix.
    fn copy<T: bytemuck::NoUninit>(&self, first: usize, rows: &[T]) -> Result<()> {
        let (out, in_) = self.weight.dims2()?;
        assert!(first * in_ + rows.len() <= out * in_ && rows.len().is_multiple_of(in_), "rows beyond a matrix");
        let start = Address::of(&self.weight)?.plus(first * in_ * size_of::<T>());
        // SAFETY: there is room, as asserted, and the matrix is not given back before the stream has come to it.
        unsafe { self.gpu.staging.copy(start, bytemuck::cast_slice(rows)) }
    }
}

impl MatrixBuilder for Filling {
    fn rows(&self, first: usize, rows: RowSlice<'_>) -> Result<()> {
        match rows {
            RowSlice::F32(numbers) => self.copy(first, numbers),
            RowSlice::F16(numbers) => self.copy(first, numbers),
            RowSlice::Bf16(numbers) => self.copy(first, numbers),
        }
    }

    fn finish(self: Box<Self>, bias: Option<Tensor>) -> Box<dyn Linear> {
        let Self { gpu, weight } = *self;
        Box::new(GpuLinear { gpu, weight, bias })
    }
}

/// Weights `[out, in]` and an optional bias `[out]`, single precision.
struct GpuLinear {
    gpu: Arc<Gpu>,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear for GpuLinear {
    fn bytes(&self) -> u64 {
        let weight = self.weight.elem_count() * self.weight.dtype().size_in_bytes();
        let bias = self.bias.as_ref().map_or(0, |bias| bias.elem_count() * size_of::<f32>());
        (weight + bias) as u64
    }

    fn forward(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let ((rows, out), (_, in_)) = (y.dims2()?, x.dims2()?);
        let wide = y.dtype() == DType::F32;
        let (x, y) = (Address::of(x)?, Address::of(y)?);
        // cuBLAS adds to what is there: rows begin as copies of the bias.
        if let Some(bias) = &self.bias {
            self.gpu.fill_rows(Address::of(bias)?, y, [rows, out])?;
        }
        let (weight, add) = (Address::of(&self.weight)?, self.bias.is_some());
        self.gpu.product(rows, [out, in_], ProductAt { x, weight, y, wide, add })
    }

    fn embed(&self, op: &Embed<'_>) -> Result<()> {
        let (table, hidden, shape) = (Address::of(&self.weight)?, Address::of(op.hidden)?, op.hidden.dims2()?);
        let token_ids = self.gpu.step().token_ids();
        self.gpu.embed([shape.0, shape.1], table, token_ids, hidden, op.vocabulary.clone(), op.scale)
    }
}

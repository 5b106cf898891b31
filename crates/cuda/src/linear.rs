//! Products with weights on a GPU, by cuBLAS. Rows of weights arrive from any thread and are copied to where they belong.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::device_slice::DeviceSlice;
use super::gpu::Gpu;
use super::launch::TokensAt;
use super::product::{ProductAt, ProductOut};
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
        let start = DeviceSlice::of(&self.weight)?.from(first * in_ * size_of::<T>())?;
        self.gpu.staging.copy(start, bytemuck::cast_slice(rows))
    }
}

impl MatrixBuilder for Filling {
    fn rows(&self, first: usize, rows: RowSlice<'_>) -> Result<()> {
        match rows {
            RowSlice::F32(numbers) => self.copy(first, numbers),
            RowSlice::F16(numbers) => self.copy(first, numbers),
            RowSlice::Bf16(numbers) => self.copy(first, numbers),
            RowSlice::Blocks(format, _) => {
                Err(candle_core::Error::Msg(format!("no kernel of a GPU multiplies blocks of {}", format.name())))
            }
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
        // cuBLAS adds to what is there: rows begin as copies of the bias.
        if let Some(bias) = &self.bias {
            self.gpu.fill_rows(DeviceSlice::of(bias)?, DeviceSlice::of(y)?, [rows, out])?;
        }
        let (weight, add) = (DeviceSlice::of(&self.weight)?, self.bias.is_some());
        match &self.gpu.row_tiles {
            None => {
                let at = ProductAt { x: DeviceSlice::of(x)?, weight, y: ProductOut::of(y)?, add };
                self.gpu.product(rows, [out, in_], at)
            }
            Some(tiles) => {
                let (x, y) = (DeviceSlice::with_what_follows(x)?, ProductOut::with_what_follows(y)?);
                tiles.product(&self.gpu, rows, [out, in_], ProductAt { x, weight, y, add })
            }
        }
    }

    fn embed(&self, op: &Embed<'_>) -> Result<()> {
        let (table, hidden) = (DeviceSlice::of(&self.weight)?, DeviceSlice::of(op.hidden)?);
        let (step, shape) = (self.gpu.step(), op.hidden.dims2()?);
        let tokens = TokensAt { ids: step.token_ids()?, chosen: step.tokens() };
        self.gpu.embed([shape.0, shape.1], table, tokens, hidden, op.vocabulary.clone(), op.scale)
    }
}

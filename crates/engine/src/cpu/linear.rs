//! Products with weights that are packed once for the CPU's kernels: `y = x · Wᵀ + bias`.
//!
//! What weights were packed from is released. This file knows nothing of what a product is for.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::access::{Operand, change, floats_mut};
use crate::device::ops::Embed;
use crate::device::{Linear, MatrixBuilder};
use flashjob_cpu::{PackedMatrix, Packing, Pool, Storage, WeightSlice, matmul};
use flashjob_model::{Dtype, Encoding, RowSlice};

/// Weights that are being packed.
pub struct PackedBuilder {
    pool: Arc<Pool>,
    packing: Packing,
}

impl PackedBuilder {
    /// Room for so many rows of `in_` weights in each encoding, one below the other.
    pub fn new(pool: &Arc<Pool>, rows: &[(Encoding, usize)], in_: usize) -> Self {
        let storage = |encoding| match encoding {
            Encoding::Plain(Dtype::F32) => Storage::F32,
            Encoding::Plain(Dtype::Bf16) => Storage::Bf16,
            Encoding::Plain(Dtype::F16) => Storage::F16,
            Encoding::Blocks(format) => Storage::Blocks(format),
        };
        let formats: Vec<_> = rows.iter().map(|&(encoding, rows)| (storage(encoding), rows)).collect();
        Self { packing: Packing::new(pool, &formats, in_), pool: Arc::clone(pool) }
    }
}

impl MatrixBuilder for PackedBuilder {
    fn rows(&self, first: usize, rows: RowSlice<'_>) -> Result<()> {
        let rows = match rows {
            RowSlice::F32(numbers) => WeightSlice::F32(numbers),
            RowSlice::F16(numbers) => WeightSlice::F16(numbers),
            RowSlice::Bf16(numbers) => WeightSlice::Bf16(numbers),
            RowSlice::Blocks(format, bytes) => WeightSlice::Blocks(format, bytes),
        };
        self.packing.rows(first, rows);
        Ok(())
    }

    fn finish(self: Box<Self>, bias: Option<Tensor>) -> Box<dyn Linear> {
        let Self { pool, packing } = *self;
        Box::new(PackedLinear { pool, matrix: packing.finish(), bias })
    }
}

/// Packed weights `[out, in]`, an optional bias `[out]`, and the threads that multiply.
struct PackedLinear {
    pool: Arc<Pool>,
    matrix: PackedMatrix,
    bias: Option<Tensor>,
}

impl Linear for PackedLinear {
    fn bytes(&self) -> u64 {
        let bias = self.bias.as_ref().map_or(0, |bias| bias.elem_count() * size_of::<f32>());
        (self.matrix.bytes() + bias) as u64
    }

    fn forward(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let (x, bias) = (Operand::of(x), self.bias.as_ref().map(Operand::of));
        let bias = bias.as_ref().map(Operand::floats).transpose()?;
        change(y, "linear", |y, layout| {
            let y = floats_mut(y, layout)?;
            let rows = y.len().checked_div(self.matrix.out()).unwrap_or(0);
            matmul(&self.pool, x.floats()?, rows, &self.matrix, bias, y);
            Ok(())
        })
    }

    fn embed(&self, op: &Embed<'_>) -> Result<()> {
        change(op.hidden, "embed", |hidden, layout| {
            let rows = floats_mut(hidden, layout)?.chunks_exact_mut(self.matrix.in_());
            // The calling thread copies these few rows.
            for (row, &token) in rows.zip(op.step.token_ids()) {
                if op.vocabulary.contains(&token) {
                    self.matrix.unpack_row((token - op.vocabulary.start) as usize, row);
                    if op.scale != 1.0 {
                        row.iter_mut().for_each(|number| *number *= op.scale);
                    }
                } else {
                    // Another rank has this row: zeros leave its part of the sum as it is.
                    row.fill(0.0);
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device as CandleDevice};

    #[test]
    fn a_bias_is_added_to_each_row() {
        let tensor = |numbers: &[f32], shape: &[usize]| Tensor::from_slice(numbers, shape, &CandleDevice::Cpu).unwrap();
        let pool = Arc::new(Pool::new(1));
        let x = tensor(&[1.0, 1.0, -1.0, 2.0], &[2, 2]);
        let y = Tensor::zeros((2, 3), DType::F32, &CandleDevice::Cpu).unwrap();
        for (bias, expected) in [
            (Some(tensor(&[10.0, 20.0, 30.0], &[3])), [[13.0, 27.0, 41.0], [13.0, 25.0, 37.0]]),
            (None, [[3.0, 7.0, 11.0], [3.0, 5.0, 7.0]]),
        ] {
            let builder = Box::new(PackedBuilder::new(&pool, &[(Encoding::Plain(Dtype::F32), 3)], 2));
            builder.rows(1, RowSlice::F32(&[3.0, 4.0, 5.0, 6.0])).unwrap();
            builder.rows(0, RowSlice::F32(&[1.0, 2.0])).unwrap();
            builder.finish(bias).forward(&x, &y).unwrap();
            assert_eq!(y.to_vec2::<f32>().unwrap(), expected);
        }
    }
}

//! The door to matrix products: `y = x · Wᵀ + bias`, wherever the weights live.
//!
//! On a CPU weights are packed once and what they were packed from is released. This file knows nothing of what a
//! product is for.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use super::ops::access::{Operand, floats, floats_mut};
use crate::kernels::{PackedMatrix, Pool, matmul};

/// Weights `[out, in]` and an optional bias `[out]`.
pub struct Linear {
    weight: PackedMatrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight` with `biases` stacked as the parts of its rows are, or none.
    pub fn new(weight: PackedMatrix, biases: &[Tensor]) -> Result<Self> {
        let bias = if biases.is_empty() { None } else { Some(Tensor::cat(biases, 0)?) };
        Ok(Self { weight, bias })
    }

    /// From `[rows, in]` into `[rows, out]`, which is overwritten.
    pub fn forward(&self, pool: &Pool, x: &Tensor, y: &Tensor) -> Result<()> {
        y.inplace_op2(x, &Product { pool, linear: self })
    }

    /// The matrix, for lookups of rows.
    pub fn packed(&self) -> &PackedMatrix {
        &self.weight
    }

    /// Rows of the matrix.
    pub fn out(&self) -> usize {
        self.weight.out()
    }

    /// Memory held.
    pub fn bytes(&self) -> u64 {
        let bias = self.bias.as_ref().map_or(0, |bias| bias.elem_count() * size_of::<f32>());
        (self.weight.bytes() + bias) as u64
    }
}

struct Product<'a> {
    pool: &'a Pool,
    linear: &'a Linear,
}

impl InplaceOp2 for Product<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, y_layout: &Layout, x: &CpuStorage, x_layout: &Layout) -> Result<()> {
        let bias = self.linear.bias.as_ref().map(Operand::of);
        let bias = bias.as_ref().map(Operand::floats).transpose()?;
        let y = floats_mut(y, y_layout)?;
        let rows = y.len().checked_div(self.linear.out()).unwrap_or(0);
        matmul(self.pool, floats(x, x_layout)?, rows, &self.linear.weight, bias, y);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::WeightSlice;

    #[test]
    fn biases_are_stacked_in_order() {
        let tensor = |numbers: &[f32], shape: &[usize]| Tensor::from_slice(numbers, shape, &Device::Cpu).unwrap();
        let pool = Pool::new(1);
        let biases = [tensor(&[10.0, 20.0], &[2]), tensor(&[30.0], &[1])];
        let x = tensor(&[1.0, 1.0, -1.0, 2.0], &[2, 2]);
        let y = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        for (biases, expected) in
            [(&biases[..], [[13.0, 27.0, 41.0], [13.0, 25.0, 37.0]]), (&[], [[3.0, 7.0, 11.0], [3.0, 5.0, 7.0]])]
        {
            let weight = PackedMatrix::pack(&pool, WeightSlice::F32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 3, 2);
            let linear = Linear::new(weight, biases).unwrap();
            assert_eq!(linear.out(), 3);
            linear.forward(&pool, &x, &y).unwrap();
            assert_eq!(y.to_vec2::<f32>().unwrap(), expected);
        }
    }
}

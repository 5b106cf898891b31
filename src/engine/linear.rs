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
    /// Stacks `parts`, each `[.., in]`, all of one dtype, to one matrix, and `biases`, one a part or none.
    pub fn pack(pool: &Pool, parts: &[Tensor], biases: &[Tensor]) -> Result<Self> {
        let width = parts.first().map_or(Ok(0), |part| part.dim(1))?;
        let operands: Vec<Operand<'_>> = parts.iter().map(Operand::of).collect();
        let slices = operands.iter().map(Operand::weights).collect::<Result<Vec<_>>>()?;
        let weight = PackedMatrix::pack_rows(pool, &slices, width);
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
    use super::*;
    use candle_core::Device;

    #[test]
    fn parts_and_biases_are_stacked_in_order() {
        let tensor = |numbers: &[f32], shape: &[usize]| Tensor::from_slice(numbers, shape, &Device::Cpu).unwrap();
        let pool = Pool::new(1);
        let parts = [tensor(&[1.0, 2.0, 3.0, 4.0], &[2, 2]), tensor(&[5.0, 6.0], &[1, 2])];
        let biases = [tensor(&[10.0, 20.0], &[2]), tensor(&[30.0], &[1])];
        let x = tensor(&[1.0, 1.0, -1.0, 2.0], &[2, 2]);
        let y = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        for (biases, expected) in
            [(&biases[..], [[13.0, 27.0, 41.0], [13.0, 25.0, 37.0]]), (&[], [[3.0, 7.0, 11.0], [3.0, 5.0, 7.0]])]
        {
            let linear = Linear::pack(&pool, &parts, biases).unwrap();
            assert_eq!(linear.out(), 3);
            linear.forward(&pool, &x, &y).unwrap();
            assert_eq!(y.to_vec2::<f32>().unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_a_matrix_of_floats_is_an_error() {
        let pool = Pool::new(1);
        let integers = Tensor::zeros((2, 2), candle_core::DType::U32, &Device::Cpu).unwrap();
        let vector = Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(Linear::pack(&pool, &[integers], &[]).is_err());
        assert!(Linear::pack(&pool, &[vector], &[]).is_err());
    }
}

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

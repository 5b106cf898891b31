//! The residual stream takes in what a block computed, and is normalised for the next one.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::access::{Operand, change, floats_mut};
use crate::kernels::{Pool, add_rms_norm};

/// `residual += delta`, `normed = rms_norm(residual) · weight`; applied to the residual.
pub struct AddRmsNorm<'a> {
    /// Who works.
    pub pool: &'a Pool,
    /// `[rows, hidden]`; `None` where nothing was computed yet.
    pub delta: Option<&'a Tensor>,
    /// `[hidden]`.
    pub weight: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
    /// `[rows, hidden]`, overwritten.
    pub normed: &'a Tensor,
}

impl InplaceOp1 for AddRmsNorm<'_> {
    fn name(&self) -> &'static str {
        "add-rms-norm"
    }

    fn cpu_fwd(&self, residual: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let residual = floats_mut(residual, layout)?;
        let weight = Operand::of(self.weight);
        let delta = self.delta.map(Operand::of);
        let delta = delta.as_ref().map(Operand::floats).transpose()?;
        change(self.normed, self.name(), |normed, layout| {
            add_rms_norm(self.pool, residual, delta, weight.floats()?, self.eps, floats_mut(normed, layout)?);
            Ok(())
        })
    }
}

//! The residual stream takes in what a block computed, and is normalised for the next one.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::access::{Operand, change, floats_mut};
#[cfg(feature = "cuda")]
use crate::cuda::address::Address;
#[cfg(feature = "cuda")]
use crate::cuda::launch::AddRmsNormAt;
use crate::forward::device::Device;
use flashjob_cpu::{AddedRows, add_rms_norm};

/// `residual += delta`, or its norm where there is a weight for that; `normed = rms_norm(residual) · weight`; applied to the residual.
pub struct AddRmsNorm<'a> {
    /// Device of the rank.
    pub device: &'a Device,
    /// `[rows, hidden]`; `None` where nothing was computed yet.
    pub delta: Option<&'a Tensor>,
    /// `[hidden]`: `delta` is normalised with it before it is added.
    pub delta_norm: Option<&'a Tensor>,
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
        let (delta, delta_norm) = (self.delta.map(Operand::of), self.delta_norm.map(Operand::of));
        let delta_norm = delta_norm.as_ref().map(Operand::floats).transpose()?;
        let delta = match &delta {
            Some(delta) => Some(AddedRows { rows: delta.floats()?, norm: delta_norm }),
            None => None,
        };
        change(self.normed, self.name(), |normed, layout| {
            add_rms_norm(self.device.pool(), residual, delta, weight.floats()?, self.eps, floats_mut(normed, layout)?);
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, residual: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        let address =
            |tensor: Option<&Tensor>| tensor.map_or(Ok(Address::NULL), |tensor| Operand::of(tensor).address());
        let at = AddRmsNormAt {
            residual: Address::of(residual, layout)?,
            delta: address(self.delta)?,
            delta_norm: address(self.delta_norm)?,
            weight: address(Some(self.weight))?,
            normed: address(Some(self.normed))?,
        };
        let (rows, hidden) = layout.shape().dims2()?;
        self.device.gpu()?.add_rms_norm([rows, hidden], at, self.eps)
    }
}

//! The gate of the feed-forward layer.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result};

use super::access::{floats, floats_mut};
#[cfg(feature = "cuda")]
use crate::cuda::address::Address;
use crate::forward::device::Device;
use flashjob_cpu::{GateActivation, gated_activation};
use flashjob_model::Activation;

/// `activation(gate) · up`: from `[rows, 2 · width]`, in each row first the gate, then up, into `[rows, width]`.
pub struct Gated<'a> {
    /// Device of the rank.
    pub device: &'a Device,
    /// The nonlinearity.
    pub activation: Activation,
    /// Width of a row of the result.
    pub width: usize,
}

impl InplaceOp2 for Gated<'_> {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(
        &self,
        activated: &mut CpuStorage,
        activated_layout: &Layout,
        gate_up: &CpuStorage,
        gate_up_layout: &Layout,
    ) -> Result<()> {
        let activation = match self.activation {
            Activation::Silu => GateActivation::Silu,
            Activation::GeluTanh => GateActivation::GeluTanh,
        };
        let activated = floats_mut(activated, activated_layout)?;
        gated_activation(self.device.pool(), floats(gate_up, gate_up_layout)?, self.width, activation, activated);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        activated: &mut candle_core::CudaStorage,
        activated_layout: &Layout,
        gate_up: &candle_core::CudaStorage,
        gate_up_layout: &Layout,
    ) -> Result<()> {
        let (gate_up, rows) = (Address::of(gate_up, gate_up_layout)?, activated_layout.dims()[0]);
        let activated = Address::of(activated, activated_layout)?;
        self.device.gpu()?.gated(gate_up, activated, [rows, self.width], self.activation)
    }
}

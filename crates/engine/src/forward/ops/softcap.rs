//! Logits are kept within bounds.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result};

use super::access::floats_mut;
#[cfg(feature = "cuda")]
use crate::cuda::address::Address;
use crate::forward::device::Device;
use flashjob_cpu::softcap;

/// Each number `x` becomes `cap · tanh(x / cap)`.
pub struct Softcap<'a> {
    /// Device of the rank.
    pub device: &'a Device,
    /// Bound of the absolute value.
    pub cap: f32,
}

impl InplaceOp1 for Softcap<'_> {
    fn name(&self) -> &'static str {
        "softcap"
    }

    fn cpu_fwd(&self, numbers: &mut CpuStorage, layout: &Layout) -> Result<()> {
        softcap(self.device.pool(), floats_mut(numbers, layout)?, self.cap);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, numbers: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        self.device.gpu()?.softcap(Address::of(numbers, layout)?, layout.shape().elem_count(), self.cap)
    }
}

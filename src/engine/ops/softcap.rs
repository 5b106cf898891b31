//! Logits are kept within bounds.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result};

use super::access::floats_mut;
use crate::kernels::{Pool, softcap};

/// Each number `x` becomes `cap · tanh(x / cap)`.
pub struct Softcap<'a> {
    /// Who works.
    pub pool: &'a Pool,
    /// The bound.
    pub cap: f32,
}

impl InplaceOp1 for Softcap<'_> {
    fn name(&self) -> &'static str {
        "softcap"
    }

    fn cpu_fwd(&self, numbers: &mut CpuStorage, layout: &Layout) -> Result<()> {
        softcap(self.pool, floats_mut(numbers, layout)?, self.cap);
        Ok(())
    }
}

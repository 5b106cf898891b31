//! Some rows of a tensor, side by side.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result};

use super::access::{floats, floats_mut};
#[cfg(feature = "cuda")]
use crate::cuda::address::Address;
use crate::forward::batch::ForwardBatch;
use crate::forward::device::Device;

/// Overwrites row `i`, of `[rows, width]`, with that row of the other tensor, `[.., width]`, which is the `i`-th whose
/// logits are wanted.
pub struct GatherRows<'a> {
    /// GPU that computes; on a CPU the calling thread copies these few rows.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub device: &'a Device,
    /// Rows of the step whose logits are wanted.
    pub step: &'a ForwardBatch,
    /// Width of a row.
    pub width: usize,
}

impl InplaceOp2 for GatherRows<'_> {
    fn name(&self) -> &'static str {
        "gather-rows"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, to_layout: &Layout, from: &CpuStorage, from_layout: &Layout) -> Result<()> {
        let from = floats(from, from_layout)?;
        let to = floats_mut(to, to_layout)?.chunks_exact_mut(self.width);
        // A few rows: waking other threads would take longer than copying them.
        for (to, &row) in to.zip(self.step.logit_rows()) {
            let start = row as usize * self.width;
            to.copy_from_slice(&from[start..start + self.width]);
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        to: &mut candle_core::CudaStorage,
        to_layout: &Layout,
        from: &candle_core::CudaStorage,
        from_layout: &Layout,
    ) -> Result<()> {
        use candle_core::backend::BackendStorage;
        let row_bytes = self.width * from.dtype().size_in_bytes();
        let (to, from) = (Address::of(to, to_layout)?, Address::of(from, from_layout)?);
        let gpu = self.device.gpu()?;
        gpu.gather_rows(from, gpu.step().logit_rows(), to, self.step.logit_rows().len(), row_bytes)
    }
}

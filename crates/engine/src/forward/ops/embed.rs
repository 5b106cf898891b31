//! Token ids become rows of the embedding.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result};

use super::access::floats_mut;
#[cfg(feature = "cuda")]
use crate::cuda::address::Address;
use crate::forward::batch::ForwardBatch;
use crate::forward::device::Device;
use crate::forward::linear::Linear;

/// Overwrites each row, `[tokens, hidden]`, with its token's row of the embedding. Ranks that share a vocabulary each
/// know some of its rows and write zeros for the others, so that the sum over ranks is the embedding.
pub struct Embed<'a> {
    /// GPU that computes; on a CPU the calling thread copies these few rows.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub device: &'a Device,
    /// `[rows of vocabulary, hidden]`.
    pub embedding: &'a Linear,
    /// The tokens whose rows those are.
    pub vocabulary: Range<u32>,
    /// Factor on all rows.
    pub scale: f32,
    /// Token ids of the step.
    pub step: &'a ForwardBatch,
}

impl InplaceOp1 for Embed<'_> {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu_fwd(&self, hidden: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let embedding = self.embedding.packed()?;
        let rows = floats_mut(hidden, layout)?.chunks_exact_mut(embedding.in_());
        for (row, &token) in rows.zip(self.step.token_ids()) {
            if self.vocabulary.contains(&token) {
                embedding.unpack_row((token - self.vocabulary.start) as usize, row);
                if self.scale != 1.0 {
                    row.iter_mut().for_each(|number| *number *= self.scale);
                }
            } else {
                // Another rank has this row: zeros leave its part of the sum as it is.
                row.fill(0.0);
            }
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, hidden: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        let (gpu, hidden) = (self.device.gpu()?, Address::of(hidden, layout)?);
        let (tokens, width) = layout.shape().dims2()?;
        let table = self.embedding.address()?;
        gpu.embed([tokens, width], table, gpu.step().token_ids(), hidden, self.vocabulary.clone(), self.scale)
    }
}

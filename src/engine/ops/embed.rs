//! Token ids become rows of the embedding.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result};

use super::access::floats_mut;
use crate::kernels::PackedMatrix;

/// Overwrites each row, `[tokens, hidden]`, with its token's row of the embedding. Ranks that share a vocabulary each
/// know some of its rows and write zeros for the others, so that the sum over ranks is the embedding.
pub struct Embed<'a> {
    /// `[rows of vocabulary, hidden]`.
    pub embedding: &'a PackedMatrix,
    /// The tokens whose rows those are.
    pub vocabulary: Range<u32>,
    /// Factor on all rows.
    pub scale: f32,
    /// `[tokens]`.
    pub token_ids: &'a [u32],
}

impl InplaceOp1 for Embed<'_> {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu_fwd(&self, hidden: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let rows = floats_mut(hidden, layout)?.chunks_exact_mut(self.embedding.in_());
        for (row, &token) in rows.zip(self.token_ids) {
            if self.vocabulary.contains(&token) {
                self.embedding.unpack_row((token - self.vocabulary.start) as usize, row);
                if self.scale != 1.0 {
                    row.iter_mut().for_each(|number| *number *= self.scale);
                }
            } else {
                row.fill(0.0);
            }
        }
        Ok(())
    }
}

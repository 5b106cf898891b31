//! Some rows of a tensor, side by side.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result};

use super::access::{floats, floats_mut};

/// Overwrites row `i`, of `[rows, width]`, with row `rows[i]` of the other tensor, `[.., width]`.
pub struct GatherRows<'a> {
    /// Which rows.
    pub rows: &'a [u32],
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
        for (to, &row) in to.zip(self.rows) {
            let start = row as usize * self.width;
            to.copy_from_slice(&from[start..start + self.width]);
        }
        Ok(())
    }
}

//! Heads of queries and keys are normalised, each by itself.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::access::{Operand, floats_mut};
#[cfg(feature = "cuda")]
use crate::cuda::address::Address;
use crate::forward::device::Device;
use flashjob_cpu::{AttentionShape, head_rms_norm};

/// Applied to `[tokens, (heads + 2 · kv_heads) · head_dim]`: RMSNorm of each head of q and of k.
pub struct NormHeads<'a> {
    /// Device of the rank.
    pub device: &'a Device,
    /// Heads of a row.
    pub shape: AttentionShape,
    /// `[head_dim]`.
    pub q: &'a Tensor,
    /// `[head_dim]`.
    pub k: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

impl InplaceOp1 for NormHeads<'_> {
    fn name(&self) -> &'static str {
        "norm-heads"
    }

    fn cpu_fwd(&self, qkv: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let qkv = floats_mut(qkv, layout)?;
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let (q, k) = (Operand::of(self.q), Operand::of(self.k));
        let width = self.shape.qkv_width();
        head_rms_norm(self.device.pool(), qkv, width, 0, heads, q.floats()?, self.eps);
        head_rms_norm(self.device.pool(), qkv, width, heads * head_dim, kv_heads, k.floats()?, self.eps);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, qkv: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let (gpu, qkv) = (self.device.gpu()?, Address::of(qkv, layout)?);
        let (rows, width) = layout.shape().dims2()?;
        let (q, k) = (Operand::of(self.q).address()?, Operand::of(self.k).address()?);
        gpu.norm_heads(qkv, q, [rows, width], 0, [heads, head_dim], self.eps)?;
        gpu.norm_heads(qkv, k, [rows, width], heads * head_dim, [kv_heads, head_dim], self.eps)
    }
}

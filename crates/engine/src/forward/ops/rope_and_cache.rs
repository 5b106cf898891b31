//! Queries and keys are turned by their positions; keys and values move into the cache.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result};

use super::access::{cache_mut, change, floats_mut};
use crate::forward::batch::ForwardBatch;
use crate::forward::device::Device;
use crate::forward::kv_cache::LayerCache;
use crate::forward::rope::RotaryEmbedding;
use flashjob_cpu::{CacheLayout, rope_and_cache};

/// Applied to `[tokens, (heads + 2 · kv_heads) · head_dim]`: rotates q and k in place and writes k and v to `cache` at
/// the step's slots.
pub struct RopeAndCache<'a> {
    /// Device of the rank.
    pub device: &'a Device,
    /// Heads of a row, and the cache's pages.
    pub layout: CacheLayout,
    /// Cosines and sines by position.
    pub rope: &'a RotaryEmbedding,
    /// Positions and slots.
    pub step: &'a ForwardBatch,
    /// Cache of the layer.
    pub cache: &'a LayerCache,
}

impl InplaceOp1 for RopeAndCache<'_> {
    fn name(&self) -> &'static str {
        "rope-and-cache"
    }

    fn cpu_fwd(&self, qkv: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let qkv = floats_mut(qkv, layout)?;
        change(&self.cache.keys, self.name(), |keys, keys_layout| {
            change(&self.cache.values, self.name(), |values, values_layout| {
                rope_and_cache(
                    self.device.pool(),
                    qkv,
                    self.layout,
                    self.step.positions(),
                    self.step.slots(),
                    self.rope.table(),
                    cache_mut(keys, keys_layout)?,
                    cache_mut(values, values_layout)?,
                );
                Ok(())
            })
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, qkv: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        use super::access::Operand;
        let gpu = self.device.gpu()?;
        let [cos, sin] = self.rope.addresses()?;
        let at = crate::cuda::launch::RopeAt {
            qkv: crate::cuda::address::Address::of(qkv, layout)?,
            cos,
            sin,
            positions: gpu.step().positions(),
            slots: gpu.step().slots(),
            k_cache: Operand::of(&self.cache.keys).address()?,
            v_cache: Operand::of(&self.cache.values).address()?,
        };
        gpu.rope_and_cache(self.step.tokens(), self.layout.shape(), self.rope.table().dim / 2, at)
    }
}

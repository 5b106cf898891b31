//! Queries and keys are turned by their positions; keys and values move into the cache.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result};

use super::access::{cache_mut, change, floats_mut};
use crate::engine::kv_cache::LayerCache;
use crate::engine::step::Step;
use crate::kernels::{CacheLayout, Pool, RopeTable, rope_and_cache};

/// Applied to `[tokens, (heads + 2 · kv_heads) · head_dim]`: rotates q and k in place and writes k and v to `cache` at
/// the step's slots.
pub struct RopeAndCache<'a> {
    /// Who works.
    pub pool: &'a Pool,
    /// Heads of a row, and the cache's pages.
    pub layout: CacheLayout,
    /// Angles.
    pub rope: &'a RopeTable,
    /// Positions and slots.
    pub step: &'a Step,
    /// The layer's.
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
                    self.pool,
                    qkv,
                    self.layout,
                    self.step.positions(),
                    self.step.slots(),
                    self.rope,
                    cache_mut(keys, keys_layout)?,
                    cache_mut(values, values_layout)?,
                );
                Ok(())
            })
        })
    }
}

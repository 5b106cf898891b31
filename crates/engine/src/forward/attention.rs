//! PagedAttention over the KV cache, on every device: prefill, chunked prefill and decode in one call.
//!
//! What it takes is what `candle_flash_attn::flash_attn_varlen_paged_windowed` takes: queries of all sequences one
//! after the other, the layer's cache, cumulative lengths, block table, scale, window, softcap; causal, aligned to the
//! bottom right. This file knows nothing of where the numbers come from.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use crate::forward::batch::ForwardBatch;
use crate::forward::device::Device;
use crate::forward::kv_cache::LayerCache;
use crate::forward::ops::access::{Operand, floats, floats_mut};
use flashjob_cpu::{CacheLayout, PagedAttention, paged_attention};

/// Settings of attention that all steps and layers share.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Heads of this rank, and tokens that a block of the cache holds.
    pub layout: CacheLayout,
    /// Factor that scores `q · k` are scaled by.
    pub scale: f32,
    /// `softcap · tanh(score / softcap)` before the softmax.
    pub softcap: Option<f32>,
}

impl Attention {
    /// From rows of q, k, v, `[tokens, (heads + 2 · kv_heads) · head_dim]`, whose keys and values are in `cache`
    /// already, into `[tokens, heads · head_dim]`, which is overwritten. A query sees `window` keys at most, itself
    /// included.
    pub fn forward(
        &self,
        device: &Device,
        qkv: &Tensor,
        cache: &LayerCache,
        window: Option<usize>,
        step: &ForwardBatch,
        out: &Tensor,
    ) -> Result<()> {
        out.inplace_op2(qkv, &Paged { device, attention: self, cache, window, step })
    }
}

struct Paged<'a> {
    device: &'a Device,
    attention: &'a Attention,
    cache: &'a LayerCache,
    window: Option<usize>,
    step: &'a ForwardBatch,
}

impl InplaceOp2 for Paged<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, out_layout: &Layout, qkv: &CpuStorage, qkv_layout: &Layout) -> Result<()> {
        let (keys, values) = (Operand::of(&self.cache.keys), Operand::of(&self.cache.values));
        let arguments = PagedAttention {
            layout: self.attention.layout,
            scale: self.attention.scale,
            q: floats(qkv, qkv_layout)?,
            q_stride: self.attention.layout.shape().qkv_width(),
            k_cache: keys.cache()?,
            v_cache: values.cache()?,
            cu_q: self.step.cumulative_queries(),
            cu_k: self.step.cumulative_keys(),
            block_table: self.step.block_table(),
            max_blocks: self.step.max_blocks(),
            window: self.window,
            softcap: self.attention.softcap,
        };
        paged_attention(self.device.pool(), &arguments, floats_mut(out, out_layout)?);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        out: &mut candle_core::CudaStorage,
        out_layout: &Layout,
        qkv: &candle_core::CudaStorage,
        qkv_layout: &Layout,
    ) -> Result<()> {
        use crate::cuda::address::Address;
        use crate::cuda::attention::PagedQueries;
        let (gpu, step, layout) = (self.device.gpu()?, self.step, self.attention.layout);
        let at = PagedQueries {
            shape: layout.shape(),
            block_size: layout.block_size(),
            q: Address::of(qkv, qkv_layout)?,
            q_stride: layout.shape().qkv_width(),
            k_cache: Operand::of(&self.cache.keys).address()?,
            v_cache: Operand::of(&self.cache.values).address()?,
            out: Address::of(out, out_layout)?,
            softmax_lse: gpu.step().softmax_lse(),
            cumulative_queries: gpu.step().cumulative_queries(),
            cumulative_keys: gpu.step().cumulative_keys(),
            block_table: gpu.step().block_table(),
            max_blocks: step.max_blocks(),
            sequences: step.sequences(),
            tokens: step.tokens(),
            longest_queries: step.longest_queries(),
            longest_keys: step.longest_keys(),
            scale: self.attention.scale,
            softcap: self.attention.softcap,
            window: self.window,
            // Decided from the size of the step alone: a recorded graph must not depend on lengths.
            split_kv: gpu.step().split_kv(step),
        };
        gpu.attention(&at)
    }
}

//! Keys and values of every token that is still needed, in blocks.
//!
//! Blocks that no token has reached yet cost no memory. Who owns which block is not known here.

use candle_core::Tensor;

use crate::device::Device;
use crate::device::ops::LayerCache;
use crate::error::Error;
use flashjob_cpu::{AttentionShape, CacheLayout, Isa};
use flashjob_model::Dtype;

/// Shape of the cache of one rank.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: usize,
    /// Heads of this rank, and tokens of a block.
    pub layout: CacheLayout,
    /// Number format of keys and values.
    pub dtype: Dtype,
}

impl KvShape {
    /// Bytes of one block over all layers, keys and values.
    pub fn block_bytes(&self) -> u64 {
        let entries = self.layout.block_keys() + self.layout.block_values();
        (self.layers * entries * self.dtype.size_bytes()) as u64
    }

    /// Bytes of one token over all layers, keys and values.
    pub fn token_bytes(&self) -> u64 {
        self.block_bytes() / self.layout.block_size() as u64
    }
}

/// Order of keys and values in a block.
#[derive(Clone, Copy, Debug)]
pub enum CacheOrder {
    /// In panels, for the CPU's kernels.
    Panels(Isa),
    /// Token by token, `[block_size, kv_heads, head_dim]`, for a GPU's.
    Tokens,
}

impl CacheOrder {
    /// Layout of the cache of a rank with these heads, in blocks of so many tokens.
    pub fn layout(self, shape: AttentionShape, block_size: usize) -> CacheLayout {
        match self {
            CacheOrder::Panels(isa) => CacheLayout::new(isa, shape, block_size),
            CacheOrder::Tokens => CacheLayout::by_token(shape, block_size),
        }
    }
}

/// Cached keys and values of all layers.
pub struct KvCache {
    layers: Vec<LayerCache>,
}

impl KvCache {
    /// Room for `blocks` blocks.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`].
    pub fn new(shape: KvShape, blocks: usize, device: &dyn Device) -> Result<Self, Error> {
        let layer = || {
            let keys = zeros(blocks * shape.layout.block_keys(), shape.dtype, device)?;
            Ok(LayerCache { keys, values: zeros(blocks * shape.layout.block_values(), shape.dtype, device)? })
        };
        Ok(Self { layers: (0..shape.layers).map(|_| layer()).collect::<Result<_, Error>>()? })
    }

    /// From first to last.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }
}

fn zeros(count: usize, dtype: Dtype, device: &dyn Device) -> Result<Tensor, Error> {
    // Zeros, though each slot is written before it is read: the padding of a panel is read, and NaN there would spread.
    // There is nothing else that can be wrong with zeros.
    device.zeros(count, dtype).map_err(|_| Error::DoesNotFit {
        what: "one layer of the KV cache".into(),
        needed_bytes: (count * dtype.size_bytes()) as u64,
        available_bytes: 0,
        advice: "the system refused the memory; lower gpu-memory-utilization or set kv-cache-memory".into(),
    })
}

//! Keys and values of every token that is still needed, in pages.
//!
//! Pages that no token has reached yet cost no memory: the system gives out zeroed memory when it is first touched.
//! Who owns which block is not known here.

use std::collections::TryReserveError;

use candle_core::{Device, Tensor};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use super::Error;
use crate::kernels::{CacheLayout, prefer_huge_pages};
use crate::model::Dtype;

/// Shape of the cache of one rank.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Heads of this rank, and tokens of a block.
    pub layout: CacheLayout,
    /// Number format.
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
        self.block_bytes() / self.layout.page() as u64
    }
}

/// Cached keys and values of one layer.
pub struct LayerCache {
    /// Blocks of [`CacheLayout::block_keys`].
    pub keys: Tensor,
    /// Blocks of [`CacheLayout::block_values`].
    pub values: Tensor,
}

/// Cached keys and values of all layers.
pub struct KvCache {
    layers: Vec<LayerCache>,
}

impl KvCache {
    /// Room for `blocks` blocks.
    pub fn new(shape: KvShape, blocks: usize) -> Result<Self, Error> {
        let layer = || {
            let keys = zeros(blocks * shape.layout.block_keys(), shape.dtype)?;
            Ok(LayerCache { keys, values: zeros(blocks * shape.layout.block_values(), shape.dtype)? })
        };
        Ok(Self { layers: (0..shape.layers).map(|_| layer()).collect::<Result<_, Error>>()? })
    }

    /// From first to last.
    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }
}

/// The same memory, which will be in huge pages where it is large.
fn untouched<T>(numbers: Vec<T>) -> Vec<T> {
    prefer_huge_pages(&numbers);
    numbers
}

fn zeros(count: usize, dtype: Dtype) -> Result<Tensor, Error> {
    let refused = |_: TryReserveError| Error::DoesNotFit {
        what: "one layer of the KV cache".into(),
        needed_bytes: (count * dtype.size_bytes()) as u64,
        available_bytes: 0,
        advice: "the system refused the memory; lower gpu-memory-utilization or set kv-cache-memory".into(),
    };
    // Asked for first: where the system refuses, `vec!` would abort. A vector of integers is zeroed by the system, one
    // of 16-bit floats would be written, and thereby be given memory.
    let tensor = match dtype {
        Dtype::F32 => {
            Vec::<f32>::new().try_reserve_exact(count).map_err(refused)?;
            Tensor::from_vec(untouched(vec![0f32; count]), count, &Device::Cpu)
        }
        Dtype::Bf16 => {
            Vec::<u16>::new().try_reserve_exact(count).map_err(refused)?;
            Tensor::from_vec(untouched(vec![0u16; count]).reinterpret_into::<bf16>(), count, &Device::Cpu)
        }
        Dtype::F16 => {
            Vec::<u16>::new().try_reserve_exact(count).map_err(refused)?;
            Tensor::from_vec(untouched(vec![0u16; count]).reinterpret_into::<f16>(), count, &Device::Cpu)
        }
    };
    tensor.map_err(Error::compute("allocate the KV cache"))
}

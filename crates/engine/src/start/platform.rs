//! CPU or CUDA: defaults and formats that differ.

use std::sync::Arc;

use crate::forward::device::Device;
use crate::forward::kv_cache::CacheOrder;
use flashjob_cpu::Isa;
use flashjob_model::{DecoderConfig, Dtype, Model, Shard, ShardShape};

/// Sequences that run at a time, unless configured: on a CPU, products gain no more speed from more rows; a GPU's cache seldom
/// holds more.
pub(crate) const MAX_NUM_SEQS: usize = 256;

/// Kind of devices that an engine computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// The processors of a node. Ranks are threads that share its memory.
    Cpu,
    /// The GPUs that this process sees, one a rank.
    Gpus,
}

impl Platform {
    /// As results name it.
    pub fn name(self) -> &'static str {
        match self {
            Platform::Cpu => "cpu",
            Platform::Gpus => "cuda",
        }
    }

    /// GPUs on this node that a rank may have, as the driver lists them; 1 where it does not say.
    pub(crate) fn visible_gpus(self) -> usize {
        #[cfg(feature = "cuda")]
        if self == Platform::Gpus {
            return crate::cuda::driver::visible_gpus().unwrap_or(1);
        }
        1
    }

    /// Ranks, unless configured: all GPUs that the model can be split over evenly, as many on each of `num_nodes`.
    pub(crate) fn default_world_size(self, config: &DecoderConfig, num_nodes: usize, visible_gpus: usize) -> usize {
        let suits = |each: &usize| {
            let world_size = each * num_nodes;
            let shard = |rank| ShardShape::new(config, Shard { rank, world_size });
            shard(0).and_then(|_| shard(world_size - 1)).is_ok()
        };
        match self {
            Platform::Cpu => num_nodes,
            Platform::Gpus => (1..=visible_gpus).rev().find(suits).unwrap_or(1) * num_nodes,
        }
    }

    /// Tokens in one step, unless configured: large enough for products at full speed.
    pub(crate) fn max_num_batched_tokens(self) -> usize {
        match self {
            Platform::Cpu => 2048,
            Platform::Gpus => 8192,
        }
    }

    /// Layout of keys and values, for CPU kernels of `isa`.
    pub(crate) fn cache_order(self, isa: Isa) -> CacheOrder {
        match self {
            Platform::Cpu => CacheOrder::Panels(isa),
            Platform::Gpus => CacheOrder::Tokens,
        }
    }

    /// Number format in which the weights of `model` are kept for arithmetic in `dtype`.
    pub(crate) fn weights_dtype(self, model: &Model, dtype: Dtype) -> Dtype {
        match self {
            Platform::Cpu => model.weights.kept_as(dtype),
            Platform::Gpus => dtype,
        }
    }

    /// Number format of activations, but for the residual stream and the logits.
    pub(crate) fn activations(self, dtype: Dtype) -> Dtype {
        match self {
            Platform::Cpu => Dtype::F32,
            Platform::Gpus => dtype,
        }
    }

    /// CPU threads that compute.
    pub(crate) fn threads(self, devices: &[Arc<Device>]) -> usize {
        match self {
            Platform::Cpu => devices.iter().map(|device| device.pool().threads()).sum(),
            // One pool serves all.
            Platform::Gpus => devices.first().map_or(0, |device| device.pool().threads()),
        }
    }

    /// True where steps of decoding are recorded and replayed, unless that is forbidden.
    pub(crate) fn replays(self) -> bool {
        self == Platform::Gpus
    }

    /// Ranks of a node with `ranks` ranks that live in one memory.
    pub(crate) fn ranks_in_a_memory(self, ranks: usize) -> usize {
        match self {
            Platform::Cpu => ranks,
            Platform::Gpus => 1,
        }
    }
}

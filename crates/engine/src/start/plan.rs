//! Decisions of loading that follow from configuration, model and host alone: pure, before a device is opened.

use super::capacity::MemoryBudget;
use super::roofline::CpuNodes;
use crate::device::platform::Platform;
use crate::error::Error;
use crate::forward::decoder::{self, DecoderFormat};
use crate::forward::kv_cache::KvShape;
use crate::forward::rope;
use crate::forward::workspace::Workspace;
use crate::parallel::nodes::NodeSettings;
use crate::schedule::limits::EngineLimits;
use flashjob_config::{DtypeChoice, EngineConfig};
use flashjob_cpu::AttentionShape;
use flashjob_model::{DecoderConfig, Dtype, Shard, ShardShape};

/// Sequences that run at a time, unless configured: on a CPU, products gain no more speed from more rows; a GPU's cache seldom
/// holds more.
const MAX_NUM_SEQS: usize = 256;

/// Ranks by the nodes that they are on.
#[derive(Clone, Debug)]
pub struct Parallelism {
    /// Nodes that share the model.
    pub num_nodes: usize,
    /// Ranks on all nodes together.
    pub world_size: usize,
    /// Ranks on each node.
    pub ranks_per_node: usize,
    /// Part of rank 0, which has most: the last rank has least, perhaps nothing of the vocabulary.
    pub largest: ShardShape,
}

impl Parallelism {
    /// As configured, or as many ranks on each node as `platform` has by default.
    ///
    /// # Errors
    /// [`Error::TensorParallel`] where nodes or heads cannot be divided so.
    pub fn new(
        platform: &dyn Platform,
        model: &DecoderConfig,
        config: &EngineConfig,
        num_nodes: usize,
    ) -> Result<Self, Error> {
        let suits = |ranks_per_node: usize| {
            let world_size = ranks_per_node * num_nodes;
            let shard = |rank| ShardShape::new(model, Shard { rank, world_size });
            shard(0).and_then(|_| shard(world_size - 1)).is_ok()
        };
        let default_size = || platform.default_ranks_per_node(&suits) * num_nodes;
        let world_size = config.tensor_parallel_size.map_or_else(default_size, usize::from);
        if !world_size.is_multiple_of(num_nodes) {
            let reason =
                format!("{num_nodes} machines cannot share its ranks evenly; choose a multiple of {num_nodes}");
            return Err(Error::TensorParallel { asked: world_size, reason });
        }
        let shape = |rank| {
            ShardShape::new(model, Shard { rank, world_size })
                .map_err(|error| Error::TensorParallel { asked: world_size, reason: error.to_string() })
        };
        let (_, largest) = (shape(world_size - 1)?, shape(0)?);
        Ok(Self { num_nodes, world_size, ranks_per_node: world_size / num_nodes, largest })
    }
}

/// The number format to compute in: as configured, or the model's own.
pub fn dtype(config: &EngineConfig, model: Dtype) -> Dtype {
    match config.dtype {
        DtypeChoice::Auto => model,
        DtypeChoice::Float16 => Dtype::F16,
        DtypeChoice::Bfloat16 => Dtype::Bf16,
        DtypeChoice::Float32 => Dtype::F32,
    }
}

/// Everything about an engine that is known before a device is opened.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Kind of devices.
    pub platform: &'static dyn Platform,
    /// Ranks and nodes.
    pub parallelism: Parallelism,
    /// Number format of the KV cache.
    pub dtype: Dtype,
    /// Number format of matrices in memory.
    pub weights_dtype: Dtype,
    /// Processors of each node.
    pub cpus: CpuNodes,
    /// Heads of one rank.
    pub shape: AttentionShape,
    /// Cache of one rank.
    pub kv_shape: KvShape,
    /// Layout of the cache, and number format of activations.
    pub format: DecoderFormat,
    /// The largest step. There are no blocks yet, and `max_model_len` is the model's own.
    pub limits: EngineLimits,
    /// Steps of decoding are recorded as CUDA graphs and replayed.
    pub replays: bool,
    /// Needs of one memory, in which several ranks may be; free bytes are not known yet.
    budget: MemoryBudget,
}

impl LoadPlan {
    /// Sizes of everything that is allocated but the cache.
    pub fn new(
        platform: &'static dyn Platform,
        model: &DecoderConfig,
        config: &EngineConfig,
        parallelism: Parallelism,
        [dtype, weights_dtype]: [Dtype; 2],
        cpus: CpuNodes,
    ) -> Self {
        let replays = platform.replays() && !config.enforce_eager;
        let limits = EngineLimits {
            max_num_seqs: config.max_num_seqs.map_or(MAX_NUM_SEQS, |count| count.get()),
            max_num_batched_tokens: config
                .max_num_batched_tokens
                .map_or(platform.max_num_batched_tokens(), |count| count.get()),
            max_model_len: model.max_position,
            block_size: config.block_tokens.get(),
            num_blocks: 0,
            num_spare_blocks: usize::from(replays),
            vocab_size: model.vocab_size,
        };
        let format = DecoderFormat { cache: platform.cache_order(cpus.isa), activations: platform.activations(dtype) };
        let shape = decoder::attention_shape(model, &parallelism.largest);
        let kv_shape = KvShape { layers: model.layers, layout: format.cache.layout(shape, limits.block_size), dtype };
        // Ranks on a CPU share the memory of their node, a GPU has its own.
        let ranks_in_a_memory = if platform.ranks_share_memory() { parallelism.ranks_per_node } else { 1 };
        let of_memory = |bytes: u64| bytes.saturating_mul(ranks_in_a_memory as u64);
        let memories = (parallelism.world_size / ranks_in_a_memory) as u64;
        let widths = decoder::widths(model, &parallelism.largest);
        let budget = MemoryBudget {
            free_bytes: None,
            // An even share: ranks differ by some rows of the vocabulary only.
            weight_bytes: weight_bytes(model, weights_dtype).div_ceil(memories),
            workspace_bytes: of_memory(Workspace::bytes(widths, &limits, format.activations)),
            block_bytes: of_memory(kv_shape.block_bytes()),
            position_bytes: rope::position_bytes(model),
        };
        Self { platform, parallelism, dtype, weights_dtype, cpus, shape, kv_shape, format, limits, replays, budget }
    }

    /// Needs of one memory with `free_bytes` free bytes.
    pub fn budget(&self, free_bytes: Option<u64>) -> MemoryBudget {
        MemoryBudget { free_bytes, ..self.budget }
    }

    /// Settings that all nodes must have alike.
    pub fn node_settings(&self, config: &EngineConfig) -> NodeSettings {
        NodeSettings::from([
            ("device", self.platform.name().to_owned()),
            ("dtype", self.dtype.name().to_owned()),
            ("weights in memory", self.weights_dtype.name().to_owned()),
            ("tensor-parallel-size", self.parallelism.world_size.to_string()),
            (
                "max-model-len",
                config.max_model_len.map_or_else(|| "the model's".to_owned(), |length| length.to_string()),
            ),
            ("max-num-seqs", self.limits.max_num_seqs.to_string()),
            ("max-num-batched-tokens", self.limits.max_num_batched_tokens.to_string()),
            ("block-size", self.limits.block_size.to_string()),
            ("enforce-eager", config.enforce_eager.to_string()),
        ])
    }
}

/// Memory that packed weights take, but for a little padding: matrices in `dtype`, vectors in single precision.
fn weight_bytes(config: &DecoderConfig, dtype: Dtype) -> u64 {
    let tensor_bytes = |shape: Vec<usize>| {
        let number_bytes = if shape.len() == 1 { size_of::<f32>() } else { dtype.size_bytes() };
        (shape.iter().product::<usize>() * number_bytes) as u64
    };
    config.tensors().map(|tensor| tensor_bytes(config.shape(tensor))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::platform::Cpu;
    use crate::device::platform::DeviceHandles;
    use crate::forward::kv_cache::CacheOrder;
    use flashjob_cpu::Isa;
    use flashjob_model::Model;
    use flashjob_test_engine::{config, open};
    use std::num::NonZeroUsize;

    const CPUS: CpuNodes = CpuNodes { threads: 4, isa: Isa::Portable, nodes: 1 };

    /// Two devices on each node, which are never opened: they have memories of their own, and replay steps.
    #[derive(Debug)]
    struct TwoDevices;

    impl Platform for TwoDevices {
        fn name(&self) -> &'static str {
            "devices"
        }

        fn default_ranks_per_node(&self, suits: &dyn Fn(usize) -> bool) -> usize {
            (1..=2).rev().find(|ranks| suits(*ranks)).unwrap_or(1)
        }

        fn max_num_batched_tokens(&self) -> usize {
            8192
        }

        fn cache_order(&self, _isa: Isa) -> CacheOrder {
            CacheOrder::Tokens
        }

        fn weights_dtype(&self, _model: &Model, dtype: Dtype) -> Dtype {
            dtype
        }

        fn activations(&self, dtype: Dtype) -> Dtype {
            dtype
        }

        fn ranks_share_memory(&self) -> bool {
            false
        }

        fn replays(&self) -> bool {
            true
        }

        fn open(&self, _ranks: usize, _cpus: CpuNodes, _dtype: Dtype) -> Result<Box<dyn DeviceHandles>, Error> {
            Err(Error::Setting("there are none".to_owned()))
        }
    }

    fn plan(platform: &'static dyn Platform, config: &EngineConfig, num_nodes: usize) -> Result<LoadPlan, Error> {
        let model = open("llama-gqa").config;
        let parallelism = Parallelism::new(platform, &model, config, num_nodes)?;
        Ok(LoadPlan::new(platform, &model, config, parallelism, [Dtype::F16; 2], CpuNodes { nodes: num_nodes, ..CPUS }))
    }

    #[test]
    fn ranks_follow_from_nodes_and_devices_unless_configured() {
        let size =
            |platform: &'static dyn Platform, nodes| plan(platform, &config(), nodes).unwrap().parallelism.world_size;
        assert_eq!((size(&Cpu, 1), size(&Cpu, 2), size(&TwoDevices, 1)), (1, 2, 2));
        let error = plan(&Cpu, &config(), 64).unwrap_err().to_string();
        assert!(error.contains("tensor-parallel-size=64"), "{error}");
    }

    #[test]
    fn limits_are_the_platform_s_unless_configured() {
        let defaults = EngineConfig { max_num_seqs: None, max_num_batched_tokens: None, ..config() };
        let limits = plan(&TwoDevices, &defaults, 1).unwrap().limits;
        assert_eq!((limits.max_num_seqs, limits.max_num_batched_tokens), (256, 8192));
        assert_eq!((limits.num_blocks, limits.num_spare_blocks), (0, 1));
        let eager = EngineConfig { enforce_eager: true, ..config() };
        assert_eq!(plan(&TwoDevices, &eager, 1).unwrap().limits.num_spare_blocks, 0);
        let asked = EngineConfig { max_num_seqs: NonZeroUsize::new(3), ..config() };
        let limits = plan(&Cpu, &asked, 1).unwrap().limits;
        assert_eq!((limits.max_num_seqs, limits.max_num_batched_tokens, limits.block_size), (3, 256, 32));
    }

    #[test]
    fn ranks_in_one_memory_need_it_together() {
        let two = |platform: &'static dyn Platform| plan(platform, &config(), 1).unwrap().budget(Some(7));
        let (cpu, devices) = (two(&Cpu), two(&TwoDevices));
        assert_eq!(cpu.free_bytes, Some(7));
        // One rank has all heads, two have half of them each.
        assert_eq!(cpu.block_bytes, 2 * devices.block_bytes);
        assert_eq!(cpu.weight_bytes.div_ceil(2), devices.weight_bytes);
    }

    #[test]
    fn nodes_of_different_settings_notice() {
        let plan = plan(&Cpu, &config(), 1).unwrap();
        let other = EngineConfig { enforce_eager: true, ..config() };
        let (here, there) = (plan.node_settings(&config()), plan.node_settings(&other));
        let different: Vec<&str> =
            here.iter().filter(|(name, value)| there[*name] != **value).map(|(name, _)| *name).collect();
        assert_eq!((here.len(), different), (there.len(), vec!["enforce-eager"]));
    }
}

//! Decisions of loading that follow from configuration, model, host and the free memory of devices: pure.

use super::capacity::MemoryBudget;
use super::formats::{Formats, WeightsInMemory};
use super::parallelism::Parallelism;
use super::roofline::CpuNodes;
use super::step_size::{self, LimitReasons, Room};
use crate::device::platform::Platform;
use crate::forward::decoder::{self, DecoderFormat};
use crate::forward::kv_cache::KvShape;
use crate::forward::rope;
use crate::forward::workspace::Workspace;
use crate::parallel::nodes::NodeSettings;
use crate::schedule::limits::EngineLimits;
use flashjob_config::EngineConfig;
use flashjob_cpu::AttentionShape;
use flashjob_model::{DecoderConfig, Dtype};

/// Everything about an engine that is decided once the free memory of its devices is known.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Kind of devices.
    pub platform: &'static dyn Platform,
    /// Engines, ranks and nodes.
    pub parallelism: Parallelism,
    /// Number format of the KV cache.
    pub dtype: Dtype,
    /// Matrices in memory.
    pub weights: WeightsInMemory,
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
    /// Causes of `limits`: sequences, and tokens.
    pub limit_reasons: LimitReasons,
    /// Steps of decoding are recorded as CUDA graphs and replayed.
    pub replays: bool,
    /// One memory, in which several ranks may be, and its needs.
    pub budget: MemoryBudget,
}

impl LoadPlan {
    /// Sizes of everything that is allocated but the cache, on devices of which the fullest has `free_bytes`.
    pub fn new(
        platform: &'static dyn Platform,
        model: &DecoderConfig,
        config: &EngineConfig,
        parallelism: Parallelism,
        formats: &Formats,
        cpus: CpuNodes,
        free_bytes: Option<u64>,
    ) -> Self {
        let Formats { dtype, weights } = formats.clone();
        let replays = platform.replays() && !config.enforce_eager;
        // All nodes must decide alike, and their free memory differs a little.
        let common_free_bytes = free_bytes.filter(|_| parallelism.num_nodes == 1);
        let tokens = step_size::max_num_batched_tokens(config, platform.max_num_batched_tokens(common_free_bytes));
        let limits = EngineLimits {
            max_num_seqs: 0,
            max_num_batched_tokens: tokens.limit,
            max_model_len: model.max_position,
            block_size: config.block_tokens.get(),
            num_blocks: 0,
            num_spare_blocks: usize::from(replays),
            vocab_size: model.vocab_size,
        };
        let format = DecoderFormat {
            cache: platform.cache_order(cpus.isa),
            activations: platform.activations(dtype),
            row_multiple: platform.determinism().row_multiple(config.deterministic),
        };
        let shape = decoder::attention_shape(model, &parallelism.largest);
        let kv_shape = KvShape { layers: model.layers, layout: format.cache.layout(shape, limits.block_size), dtype };
        // Ranks on a CPU, those of all engines, share the memory of their node; a GPU has its own.
        let ranks_on_node = parallelism.ranks_per_node * parallelism.data_parallel_size;
        let ranks_in_a_memory = if platform.ranks_share_memory() { ranks_on_node } else { 1 };
        let of_memory = |bytes: u64| bytes.saturating_mul(ranks_in_a_memory as u64);
        let widths = decoder::widths(model, &parallelism.largest);
        // An even share: ranks differ by some rows of the vocabulary only.
        let weight_bytes = of_memory(weights.bytes).div_ceil(parallelism.world_size as u64);
        let workspace_bytes = |max_num_seqs| {
            let largest = EngineLimits { max_num_seqs, ..limits }.rounded_up(format.row_multiple);
            of_memory(Workspace::bytes(widths, &largest, format.activations))
        };
        let room = Room {
            free_bytes: common_free_bytes,
            fixed_bytes: weight_bytes.saturating_add(workspace_bytes(0)),
            logits_bytes: workspace_bytes(1).saturating_sub(workspace_bytes(0)),
            token_bytes: of_memory(kv_shape.token_bytes()),
        };
        let longest = config.max_model_len.map_or(model.max_position, |length| length.get());
        let sequences = step_size::max_num_seqs(config, platform.max_num_seqs(), longest, &room);
        let limits = EngineLimits { max_num_seqs: sequences.limit, ..limits };
        let budget = MemoryBudget {
            free_bytes,
            weight_bytes,
            workspace_bytes: workspace_bytes(sequences.limit),
            block_bytes: of_memory(kv_shape.block_bytes()),
            position_bytes: rope::position_bytes(model),
        };
        let limit_reasons = LimitReasons { max_num_seqs: sequences.reason, max_num_batched_tokens: tokens.reason };
        Self {
            platform,
            parallelism,
            dtype,
            weights,
            cpus,
            shape,
            kv_shape,
            format,
            limits,
            limit_reasons,
            replays,
            budget,
        }
    }

    /// Settings that all nodes must have alike.
    pub fn node_settings(&self, config: &EngineConfig) -> NodeSettings {
        NodeSettings::from([
            ("device", self.platform.name().to_owned()),
            ("dtype", self.dtype.name().to_owned()),
            ("weights in memory", self.weights.name.clone()),
            ("tensor-parallel-size", self.parallelism.world_size.to_string()),
            (
                "max-model-len",
                config.max_model_len.map_or_else(|| "the model's".to_owned(), |length| length.to_string()),
            ),
            ("max-num-seqs", self.limits.max_num_seqs.to_string()),
            ("max-num-batched-tokens", self.limits.max_num_batched_tokens.to_string()),
            ("block-size", self.limits.block_size.to_string()),
            ("enforce-eager", config.enforce_eager.to_string()),
            ("deterministic", config.deterministic.to_string()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::super::capacity;
    use super::*;
    use crate::cpu::platform::Cpu;
    use crate::device::platform::{DeviceHandles, Installed};
    use crate::error::Error;
    use crate::forward::kv_cache::CacheOrder;
    use crate::start::step_size::LimitReason;
    use flashjob_config::{DtypeChoice, Quantization};
    use flashjob_cpu::Isa;
    use flashjob_model::{Model, WeightsFormat};
    use flashjob_test_engine::{config, open};
    use std::num::NonZeroUsize;
    use std::ops::RangeInclusive;

    const CPUS: CpuNodes = CpuNodes { threads: 4, isa: Isa::Portable, nodes: 1 };

    /// Devices on each node, which are never opened: they have memories of their own, and replay steps.
    #[derive(Debug)]
    struct Devices(Installed);

    impl Platform for Devices {
        fn name(&self) -> &'static str {
            "devices"
        }

        fn installed(&self) -> Installed {
            self.0
        }

        fn max_num_batched_tokens(&self, free_bytes: Option<u64>) -> usize {
            if free_bytes.is_some() { 16_384 } else { 8192 }
        }

        fn max_num_seqs(&self) -> RangeInclusive<usize> {
            256..=1024
        }

        fn cache_order(&self, _isa: Isa) -> CacheOrder {
            CacheOrder::Tokens
        }

        fn weights_format(&self, _model: &Model, dtype: Dtype, _quantization: Quantization) -> WeightsFormat {
            WeightsFormat { dtype, keeps_blocks: false }
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

        fn open(
            &self,
            _ranks: usize,
            _cpus: CpuNodes,
            _dtype: Dtype,
            _deterministic: bool,
        ) -> Result<Box<dyn DeviceHandles>, Error> {
            Err(Error::Setting("there are none".to_owned()))
        }
    }

    const GIB: u64 = 1 << 30;

    /// So many devices of a GiB each.
    fn devices(count: usize) -> &'static dyn Platform {
        Box::leak(Box::new(Devices(Installed { count, memory_bytes: Some(GIB) })))
    }

    fn plan(platform: &'static dyn Platform, config: &EngineConfig, num_nodes: usize) -> Result<LoadPlan, Error> {
        plan_with(platform, config, num_nodes, None)
    }

    fn plan_with(
        platform: &'static dyn Platform,
        config: &EngineConfig,
        num_nodes: usize,
        free_bytes: Option<u64>,
    ) -> Result<LoadPlan, Error> {
        let opened = open("llama-gqa");
        let formats = Formats::new(platform, &opened, &EngineConfig { dtype: DtypeChoice::Float16, ..config.clone() });
        let (model, cpus) = (opened.config, CpuNodes { nodes: num_nodes, ..CPUS });
        let plan =
            |parallelism, free_bytes| LoadPlan::new(platform, &model, config, parallelism, &formats, cpus, free_bytes);
        let is_useful = |parallelism, installed: Installed| {
            let plan = plan(parallelism, installed.memory_bytes);
            capacity::is_useful(config, plan.limits, &plan.budget)
        };
        let parallelism = Parallelism::new(platform, &model, config, num_nodes, &is_useful)?;
        Ok(plan(parallelism, free_bytes))
    }

    /// Engines and ranks of each.
    fn sizes(platform: &'static dyn Platform, config: &EngineConfig, num_nodes: usize) -> (usize, usize) {
        let Parallelism { data_parallel_size, world_size, .. } = plan(platform, config, num_nodes).unwrap().parallelism;
        (data_parallel_size, world_size)
    }

    fn asking(engines: usize, ranks: usize) -> EngineConfig {
        let [data_parallel_size, tensor_parallel_size] = [engines, ranks].map(NonZeroUsize::new);
        EngineConfig { data_parallel_size, tensor_parallel_size, ..config() }
    }

    #[test]
    fn a_model_that_fits_a_device_has_an_engine_on_each() {
        for (count, expected) in [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (8, (8, 1))] {
            assert_eq!(sizes(devices(count), &config(), 1), expected);
        }
        assert_eq!(sizes(&Cpu, &config(), 1), (1, 1));
    }

    /// Bytes in which one rank has just room for a useful cache.
    fn needed(config: &EngineConfig) -> u64 {
        let is_useful = |bytes: u64| {
            let plan = plan_with(devices(1), config, 1, Some(bytes)).unwrap();
            capacity::is_useful(config, plan.limits, &plan.budget)
        };
        let (mut less, mut enough) = (0, GIB);
        while less + 1 < enough {
            let middle = less.midpoint(enough);
            *(if is_useful(middle) { &mut enough } else { &mut less }) = middle;
        }
        enough
    }

    #[test]
    fn an_engine_has_as_few_devices_as_leave_a_useful_cache() {
        let config = EngineConfig { memory_utilization: 1.0, ..config() };
        let needed = needed(&config);
        let of = |count, memory_bytes| {
            let installed = Installed { count, memory_bytes: Some(memory_bytes) };
            sizes(Box::leak(Box::new(Devices(installed))), &config, 1)
        };
        // Its two heads of keys and values allow two ranks or four, not three.
        assert_eq!(of(4, needed), (4, 1));
        assert_eq!(of(4, needed - 1), (2, 2));
        assert_eq!(of(3, needed - 1), (1, 2));
        // Where no number of ranks leaves room for a useful cache, all of them are one engine.
        assert_eq!(of(4, 1), (1, 4));
    }

    #[test]
    fn what_is_configured_decides_and_the_rest_takes_all_devices() {
        for (engines, ranks, expected) in [
            (0, 2, (2, 2)),
            (0, 1, (5, 1)),
            (0, 4, (1, 4)),
            (1, 0, (1, 4)),
            (2, 0, (2, 2)),
            (3, 0, (3, 1)),
            (1, 2, (1, 2)),
        ] {
            assert_eq!(sizes(devices(5), &asking(engines, ranks), 1), expected, "{engines} {ranks}");
        }
        // More than there are: refused before this, by those who know what is visible.
        assert_eq!(sizes(devices(2), &asking(3, 0), 1), (3, 1));
        assert_eq!(sizes(&Cpu, &asking(2, 0), 1), (2, 1));
        assert_eq!(sizes(&Cpu, &asking(0, 2), 1), (1, 2));
        assert_eq!(sizes(&Cpu, &asking(3, 2), 1), (3, 2));
    }

    #[test]
    fn nodes_share_one_engine() {
        assert_eq!((sizes(&Cpu, &config(), 2), sizes(devices(2), &config(), 2)), ((1, 2), (1, 4)));
        assert_eq!(sizes(devices(4), &asking(0, 4), 2), (1, 4));
        let error = plan(&Cpu, &config(), 64).unwrap_err().to_string();
        assert!(error.contains("tensor-parallel-size=64"), "{error}");
        let error = plan(devices(2), &asking(2, 0), 2).unwrap_err().to_string();
        let expected = "data-parallel-size=2 is for the devices of one machine, but 2 share the model; leave it out, or give each \
                        machine a part of the prompts (replica-count)";
        assert_eq!(error, expected);
    }

    #[test]
    fn limits_are_the_platform_s_unless_configured() {
        let defaults = EngineConfig { max_num_seqs: None, max_num_batched_tokens: None, ..config() };
        let limits = plan(devices(2), &defaults, 1).unwrap().limits;
        assert_eq!((limits.max_num_seqs, limits.max_num_batched_tokens), (256, 8192));
        assert_eq!((limits.num_blocks, limits.num_spare_blocks), (0, 1));
        let of = |nodes| {
            let plan = plan_with(devices(2), &defaults, nodes, Some(1 << 30)).unwrap();
            (plan.limits.max_num_seqs, plan.limits.max_num_batched_tokens, plan.limit_reasons.max_num_seqs)
        };
        // The free memory of one of several nodes decides nothing: the others would decide otherwise.
        assert_eq!(
            (of(1), of(2)),
            ((1024, 16_384, LimitReason::DeviceDefault), (256, 8192, LimitReason::DeviceDefault))
        );
        let eager = EngineConfig { enforce_eager: true, ..config() };
        assert_eq!(plan(devices(2), &eager, 1).unwrap().limits.num_spare_blocks, 0);
        let asked = EngineConfig { max_num_seqs: NonZeroUsize::new(3), ..config() };
        let limits = plan(&Cpu, &asked, 1).unwrap().limits;
        assert_eq!((limits.max_num_seqs, limits.max_num_batched_tokens, limits.block_size), (3, 256, 32));
    }

    #[test]
    fn ranks_in_one_memory_need_it_together() {
        let of = |platform: &'static dyn Platform, engines, ranks| {
            plan_with(platform, &asking(engines, ranks), 1, Some(7)).unwrap().budget
        };
        let (cpu, divided) = (of(&Cpu, 1, 1), of(devices(2), 1, 2));
        assert_eq!(cpu.free_bytes, Some(7));
        // One rank has all heads, two have half of them each.
        assert_eq!(cpu.block_bytes, 2 * divided.block_bytes);
        assert_eq!(cpu.weight_bytes.div_ceil(2), divided.weight_bytes);
        // Engines on a CPU share a memory, engines on devices have their own.
        let (on_cpu, on_devices) = (of(&Cpu, 3, 1), of(devices(3), 3, 1));
        let all = |budget: MemoryBudget| [budget.weight_bytes, budget.workspace_bytes, budget.block_bytes];
        assert_eq!(all(on_cpu), all(cpu).map(|bytes| 3 * bytes));
        assert_eq!(all(on_devices), all(of(devices(1), 1, 1)));
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

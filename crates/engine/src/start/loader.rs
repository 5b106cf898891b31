//! Loading a model: memory is decided, nodes meet, weights are read, ranks are connected.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::capacity::{self, Capacity, Demand};
use super::instructions::instructions;
use super::parts::Parts;
use super::platform::{self, Open, Placement};
use super::roofline;
use crate::cluster::handshake::{Terms, identity};
use crate::cluster::links::Links;
use crate::cluster::rendezvous::Rendezvous;
use crate::cluster::world::World;
use crate::cost::Cost;
use crate::engine::Engine;
use crate::error::Error;
use crate::forward::batch::wire_format::StepBounds;
use crate::forward::batch::{Step, StepExtent};
use crate::forward::decoder::{self, Extent};
use crate::forward::device::Processor;
use crate::forward::kv_cache::KvShape;
use crate::forward::replay::ReplaySizes;
use crate::forward::rope;
use crate::forward::sampler::Sampler;
use crate::forward::workspace::{MostRows, Workspace};
use crate::report::EngineFacts;
use flashjob_config::{DtypeChoice, EngineConfig};
use flashjob_cpu::{Pool, cpu_quota_threads};
use flashjob_event::{Events, Fact};
use flashjob_model::{DecoderConfig, Dtype, Model, Shard, ShardShape, Validation};

impl Engine {
    /// As [`Engine::load_on`] on the CPU.
    ///
    /// # Errors
    /// As there.
    pub fn load(
        model: &Model,
        config: &EngineConfig,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        Self::load_on(Placement::Cpu, model, config, events, cancel)
    }

    /// Decides how much memory goes where, reads the weights to where they are used, and allocates the KV cache.
    ///
    /// # Errors
    /// [`Error::TensorParallel`], [`Error::Setting`] and [`Error::DoesNotFit`] before a weight is read; then
    /// [`Error::Model`] and [`Error::Cancelled`].
    pub fn load_on(
        placement: Placement,
        model: &Model,
        config: &EngineConfig,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        Ok(Loading { placement, model, config, rendezvous: None, events, cancel }.load()?.0)
    }

    /// The same for the machine that leads those of `rendezvous`: each loads its own ranks.
    ///
    /// # Errors
    /// As [`Engine::load_on`]; [`Error::Machines`] and [`Error::Ended`] where another machine does not come or is gone.
    pub fn load_leading(
        placement: Placement,
        model: &Model,
        config: &EngineConfig,
        rendezvous: Option<&Rendezvous>,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        Ok(Loading { placement, model, config, rendezvous, events, cancel }.load()?.0)
    }
}

/// Everything that loading takes.
pub struct Loading<'a> {
    pub placement: Placement,
    pub model: &'a Model,
    pub config: &'a EngineConfig,
    pub rendezvous: Option<&'a Rendezvous>,
    pub events: &'a Events,
    pub cancel: &'a CancellationToken,
}

impl Loading<'_> {
    /// An engine, and what its steps may hold.
    pub fn load(self) -> Result<(Engine, StepBounds), Error> {
        let Self { placement, model, config, rendezvous, events, cancel } = self;
        let machines = rendezvous.map_or(1, |rendezvous| rendezvous.machines().count.get());
        let world_size =
            config.tensor_parallel_size.map_or_else(|| placement.ranks(&model.config, machines), usize::from);
        if !world_size.is_multiple_of(machines) {
            let reason = format!("{machines} machines cannot share its ranks evenly; choose a multiple of {machines}");
            return Err(Error::TensorParallel { asked: world_size, reason });
        }
        let here = world_size / machines;
        let dtype = match config.dtype {
            DtypeChoice::Auto => model.dtype,
            DtypeChoice::Float16 => Dtype::F16,
            DtypeChoice::Bfloat16 => Dtype::Bf16,
            DtypeChoice::Float32 => Dtype::F32,
        };
        let weights_dtype = placement.weights_dtype(model, dtype);
        let max_num_seqs = config.max_num_seqs.map_or(platform::MAX_NUM_SEQS, |count| count.get());
        let max_num_batched_tokens =
            config.max_num_batched_tokens.map_or(placement.max_num_batched_tokens(), |n| n.get());
        let block_tokens = config.block_tokens.get();
        let most = MostRows { tokens: max_num_batched_tokens, wanted: max_num_seqs.min(max_num_batched_tokens) };

        let part = |rank| {
            ShardShape::new(&model.config, Shard { rank, world_size })
                .map_err(|error| Error::TensorParallel { asked: world_size, reason: error.to_string() })
        };
        // The last rank has least, perhaps nothing; the first one has most.
        let (_, part) = (part(world_size - 1)?, part(0)?);
        let threads = config.threads.map_or_else(cpu_quota_threads, |threads| threads.get());
        let isa = instructions(config.instruction_set)?;
        let open = placement.open(here, threads, isa, dtype)?;
        let shape = decoder::attention_shape(&model.config, &part);
        let (cache, activations) = (placement.cache_order(isa), placement.activations(dtype));
        let kv_shape = KvShape { layers: model.config.layers, layout: cache.layout(shape, block_tokens), dtype };
        let of_memory = |bytes: u64| bytes.saturating_mul(placement.ranks_in_a_memory(here) as u64);
        let free_bytes = open.iter().map(Open::free_bytes).collect::<Result<Vec<_>, _>>()?;
        let memories = (world_size / placement.ranks_in_a_memory(here)) as u64;
        let workspace_bytes = Workspace::bytes(decoder::widths(&model.config, &part), most, activations);
        let demand = Demand {
            free_bytes: free_bytes.into_iter().flatten().min(),
            weight_bytes: weight_bytes(&model.config, weights_dtype).div_ceil(memories),
            workspace_bytes: of_memory(workspace_bytes),
            block_bytes: of_memory(kv_shape.block_bytes()),
            max_position: model.config.max_position,
            position_bytes: rope::position_bytes(&model.config),
            max_num_seqs,
        };
        let replays = placement.replays() && !config.enforce_eager;
        let planned = capacity::plan(config, &demand)?;
        let world = match rendezvous {
            None => World { size: world_size, here: 0..world_size, links: None },
            Some(rendezvous) => {
                let first = rendezvous.machines().index * here;
                let terms = Terms::default()
                    .with("version", env!("CARGO_PKG_VERSION"))
                    .with("model", identity(model)?)
                    .with("device", placement.name())
                    .with("dtype", dtype.name())
                    .with("weights in memory", weights_dtype.name())
                    .with("tensor-parallel-size", world_size)
                    .with(
                        "max-model-len",
                        config.max_model_len.map_or_else(|| "the model's".to_owned(), |n| n.to_string()),
                    )
                    .with("max-num-seqs", max_num_seqs)
                    .with("max-num-batched-tokens", max_num_batched_tokens)
                    .with("block-size", block_tokens)
                    .with("enforce-eager", config.enforce_eager);
                World { size: world_size, here: first..first + here, links: Some(rendezvous.meet(&terms)?) }
            }
        };
        let capacity = world.agree(planned)?;
        let follows = matches!(world.links, Some(Links::Follows(_)));
        let max_model_len = capacity.max_model_len;
        let extent = Extent { most, max_model_len, block_tokens, cache, activations };

        // Before there are weights: it takes memory of its own for a moment. Machines are taken to be alike.
        let computing = roofline::Processors { threads, isa, machines };
        let measured = match open.first().filter(|_| config.measure_limits && !follows) {
            Some(open) => Some(open.limits(here, computing)?),
            None => None,
        };
        if let Some(Ok(limits)) = measured {
            roofline::state(limits, events);
        }
        let max_blocks = max_model_len.div_ceil(block_tokens);
        let step_extent = StepExtent { tokens: most.tokens, sequences: max_num_seqs, max_blocks, shape };
        let kernels = open.first().map_or_else(String::new, Open::kernels);
        // Ranks are at rest when tokens are chosen.
        let host = match &open[..] {
            [Open::Cpu(pool)] => Arc::clone(pool),
            _ => Arc::new(Pool::with_isa(threads, isa)),
        };
        let open = open.into_iter();
        let processors = open.map(|open| open.ready(step_extent, &host)).collect::<Result<Vec<_>, _>>()?;
        let parts = Parts {
            model,
            config,
            processors: &processors,
            weights_dtype,
            validation: if config.validate_weights { Validation::Finite } else { Validation::Trust },
            extent,
            kv_shape,
            spare_blocks: usize::from(replays),
        };
        let mut step = Arc::new(Step::with_capacity(most.tokens, max_num_seqs, max_blocks, block_tokens));
        let mut cost = Cost::new(&model.config, kv_shape.token_bytes().saturating_mul(world_size as u64));
        let (ranks, Capacity { kv_blocks, max_model_len }) = match placement {
            Placement::Cpu => (parts.load(world, capacity.kv_blocks as usize, &mut cost, events, cancel)?, capacity),
            Placement::Gpus => parts.load_and_profile(world, &demand, &mut step, &mut cost, events, cancel)?,
        };
        let threads = placement.threads(&processors);
        let elsewhere = ranks.world().all_loaded(&cost.loaded(threads))?;
        elsewhere.iter().for_each(|loaded| cost.add_machine(loaded));
        let bounds = parts.bounds(max_num_seqs, kv_blocks as usize);
        let replay = replays.then_some(ReplaySizes { max_sequences: most.wanted, max_blocks, spare_block: kv_blocks });
        let facts = EngineFacts {
            device: placement.name(),
            dtype: dtype.name(),
            weights_dtype: weights_dtype.name(),
            kernels,
            threads: elsewhere.iter().fold(threads, |sum, loaded| sum.saturating_add(loaded.threads)),
            tensor_parallel_size: world_size,
            machines,
            kv_blocks: kv_blocks as usize,
            block_tokens,
            kv_cache_bytes: (u64::from(kv_blocks) * kv_shape.block_bytes()).saturating_mul(world_size as u64),
            max_model_len,
            max_num_seqs,
            max_num_batched_tokens,
            prefix_caching: config.prefix_caching,
            cuda_graphs: replays,
            limits: measured.and_then(Result::ok),
            limits_not_measured: measured.and_then(Result::err).map(|error| error.to_string()),
            cost,
        };
        let processor = match placement {
            Placement::Cpu => Arc::new(Processor::cpu(host)),
            Placement::Gpus => Arc::clone(&processors[0]),
        };
        events.emit(Fact::EngineReady { kv_blocks: facts.kv_blocks, block_tokens });
        let vocab_size = model.config.vocab_size;
        let sampler = Sampler::default();
        let limits_of = (placement == Placement::Cpu && facts.limits.is_some()).then_some(computing);
        Ok((Engine { facts, vocab_size, ranks, step, replay, sampler, processor, watcher: None, limits_of }, bounds))
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

//! A model and requests become tokens: paged KV cache, continuous batching, chunked prefill, one decoder.
//!
//! The engine states facts through [`flashjob_event`]; it knows nothing of MLflow, Prometheus, HTTP, or clocks
//! that are shown to people.
//!
//! From the outside in: `run` turns requests into steps with the help of the `scheduler`, which counts blocks and tokens;
//! Ranks may be on other machines (`machines`, `world`): theirs `follow`.
//!
//! `step` is what one forward pass is about; `decoder` computes it, through three doors behind which devices and ranks
//! differ: `attention`, `linear` and `communicator`; `sampler` turns logits into tokens.

mod attention;
mod blocks;
mod capacity;
mod communicator;
#[cfg(feature = "cuda")]
mod cuda;
mod decoder;
mod error;
mod facts;
mod follow;
mod host_memory;
mod instructions;
#[cfg(any(feature = "cuda", test))]
mod key_split;
mod kv_cache;
mod limits;
mod linear;
mod loading;
mod machines;
mod ops;
mod parts;
mod placement;
mod processor;
mod profile;
mod ranks;
mod replay;
mod request;
mod rope;
mod run;
mod sampler;
mod sampling;
mod scheduler;
mod step;
mod workspace;
mod world;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use flashjob_config::{DtypeChoice, EngineConfig};
use flashjob_cpu::{Pool, cpu_quota_threads};
use flashjob_event::{Events, Fact, RequestId};
use flashjob_model::{DecoderConfig, Dtype, Model, Shard, ShardShape, Validation};

use capacity::{Capacity, Demand};
use decoder::Extent;
use kv_cache::KvShape;
use machines::{Links, Terms};
use parts::Parts;
use placement::Open;
use processor::Processor;
use ranks::Ranks;
use replay::ReplaySizes;
use sampler::Sampler;
use step::{Step, StepBounds, StepExtent};
use workspace::{MostRows, Workspace};
use world::World;

#[cfg(feature = "cuda")]
pub use cuda::{gpu_identifiers, visible_gpus};
pub use error::Error;
pub use facts::{Cost, EngineFacts};
pub use follow::Follower;
pub use instructions::instructions;
pub use machines::{End, Rendezvous};
pub use placement::Placement;
pub use request::{NotFinite, Output, Request};

/// Receives a request, the position of the token that is about to be chosen, and the logits it is chosen from.
pub type LogitsWatcher = Box<dyn FnMut(RequestId, usize, &[f32]) + Send>;

/// A loaded model that serves requests, one run at a time.
pub struct Engine {
    facts: EngineFacts,
    vocab_size: usize,
    ranks: Ranks,
    /// Lent to the ranks for as long as they compute it.
    step: Arc<Step>,
    /// Where steps of decoding are recorded and replayed.
    replay: Option<ReplaySizes>,
    sampler: Sampler,
    processor: Arc<Processor>,
    watcher: Option<LogitsWatcher>,
    /// Processors whose limits can be measured again.
    limits_of: Option<limits::Processors>,
}

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

    /// What was decided.
    pub fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    /// Shows all logits from which tokens are chosen to `watcher`, at the cost of copying them: for tests and
    /// diagnosis. `None` ends it.
    pub fn watch_logits(&mut self, watcher: Option<LogitsWatcher>) {
        self.watcher = watcher;
    }
}

/// Everything that loading takes.
struct Loading<'a> {
    placement: Placement,
    model: &'a Model,
    config: &'a EngineConfig,
    rendezvous: Option<&'a Rendezvous>,
    events: &'a Events,
    cancel: &'a CancellationToken,
}

impl Loading<'_> {
    /// An engine, and what its steps may hold.
    fn load(self) -> Result<(Engine, StepBounds), Error> {
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
        let max_num_seqs = config.max_num_seqs.map_or(placement::MAX_NUM_SEQS, |count| count.get());
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
                    .with("model", machines::identity(model)?)
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
        let computing = limits::Processors { threads, isa, machines };
        let measured = match open.first().filter(|_| config.measure_limits && !follows) {
            Some(open) => Some(open.limits(here, computing)?),
            None => None,
        };
        if let Some(Ok(limits)) = measured {
            limits::state(limits, events);
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

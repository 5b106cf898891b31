//! A model and requests become tokens: paged KV cache, continuous batching, chunked prefill, one decoder.
//!
//! The engine states facts through [`crate::event`]; it knows nothing of MLflow, Prometheus, HTTP, or clocks
//! that are shown to people.
//!
//! From the outside in: `run` turns requests into steps with the help of the `scheduler`, which counts blocks and tokens;
//! `step` is what one forward pass is about; `decoder` computes it, through three doors behind which devices and ranks
//! differ: `attention`, `linear` and `communicator`; `sampler` turns logits into tokens.

mod attention;
mod blocks;
mod capacity;
mod communicator;
mod decoder;
mod error;
mod facts;
mod host_memory;
mod kv_cache;
mod linear;
mod loading;
mod ops;
mod ranks;
mod request;
mod rope;
mod run;
mod sampler;
mod sampling;
mod scheduler;
mod step;
mod workspace;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::cgroup::free_memory_bytes;
use crate::config::{DtypeChoice, EngineConfig};
use crate::event::{Events, Fact, RequestId};
use crate::kernels::{CacheLayout, Isa, Limits, Pool, capabilities, cpu_quota_threads, measure_limits};
use crate::model::{DecoderConfig, Dtype, Model, Shard, ShardShape, Validation};

use capacity::{Capacity, Demand};
use communicator::{Communicator, Group, Member, Solo};
use decoder::{Decoder, Extent};
use kv_cache::{KvCache, KvShape};
use ranks::{Rank, Ranks};
use sampler::Sampler;
use step::Step;
use workspace::{MostRows, Workspace};

pub use error::Error;
pub use facts::{Cost, EngineFacts};
pub use request::{Output, Request};

/// Sequences that run at a time on a CPU: beyond this, products gain no more speed from more rows.
const CPU_MAX_NUM_SEQS: usize = 256;

/// Tokens in one step on a CPU: large enough for products at full speed.
const CPU_MAX_NUM_BATCHED_TOKENS: usize = 2048;

/// Receives a request, the position of the token that is about to be chosen, and the logits it is chosen from.
pub type LogitsWatcher = Box<dyn FnMut(RequestId, usize, &[f32]) + Send>;

/// A loaded model that serves requests, one run at a time.
pub struct Engine {
    facts: EngineFacts,
    vocab_size: usize,
    ranks: Ranks,
    step: Step,
    sampler: Sampler,
    pool: Arc<Pool>,
    watcher: Option<LogitsWatcher>,
}

impl Engine {
    /// Decides how much memory goes where, reads and packs the weights, and allocates the KV cache.
    ///
    /// # Errors
    /// [`Error::TensorParallel`], [`Error::Setting`] and [`Error::DoesNotFit`] before a weight is read; then
    /// [`Error::Model`] and [`Error::Cancelled`].
    pub fn load(
        model: &Model,
        config: &EngineConfig,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let world_size = config.tensor_parallel_size.map_or(1, |ranks| ranks.get());
        let dtype = match config.dtype {
            DtypeChoice::Auto => model.dtype,
            DtypeChoice::Float16 => Dtype::F16,
            DtypeChoice::Bfloat16 => Dtype::Bf16,
            DtypeChoice::Float32 => Dtype::F32,
        };
        let weights_dtype = model.weights.kept_as(dtype);
        let max_num_seqs = config.max_num_seqs.map_or(CPU_MAX_NUM_SEQS, |count| count.get());
        let max_num_batched_tokens = config.max_num_batched_tokens.map_or(CPU_MAX_NUM_BATCHED_TOKENS, |n| n.get());
        let block_tokens = config.block_tokens.get();
        let most = MostRows { tokens: max_num_batched_tokens, wanted: max_num_seqs.min(max_num_batched_tokens) };

        let part = ShardShape::new(&model.config, Shard { rank: world_size - 1, world_size })
            .map_err(|error| Error::TensorParallel { asked: world_size, reason: error.to_string() })?;
        // All ranks live in one memory.
        let of_all = |bytes: u64| bytes.saturating_mul(world_size as u64);
        let layout = CacheLayout::new(Isa::detect(), decoder::attention_shape(&model.config, &part), block_tokens);
        let kv_shape = KvShape { layers: model.config.layers, layout, dtype };
        let demand = Demand {
            free_bytes: free_memory_bytes(),
            weight_bytes: weight_bytes(&model.config, weights_dtype),
            workspace_bytes: of_all(Workspace::bytes(decoder::widths(&model.config, &part), most)),
            block_bytes: of_all(kv_shape.block_bytes()),
            max_position: model.config.max_position,
            max_num_seqs,
        };
        let Capacity { kv_blocks, max_model_len } = capacity::plan(config, &demand)?;

        let threads = config.threads.map_or_else(cpu_quota_threads, |threads| threads.get());
        // Before there are weights: it takes memory of its own for a moment.
        let limits = config.measure_limits.then(|| {
            let limits = measure_limits(&Pool::new(threads));
            let Limits { flops_per_second, bytes_per_second, .. } = limits;
            events.emit(Fact::LimitsMeasured { flops_per_second, bytes_per_second });
            limits
        });
        let parts = Parts {
            world_size,
            threads,
            weights_dtype,
            validation: if config.validate_weights { Validation::Finite } else { Validation::Trust },
            extent: Extent { most, max_model_len, block_tokens },
            kv_shape,
            kv_blocks: kv_blocks as usize,
        };
        let mut cost = Cost::new(&model.config, of_all(kv_shape.token_bytes()));
        let (ranks, mut pools) = parts.load(model, &mut cost, events, cancel)?;
        let facts = EngineFacts {
            device: "cpu",
            dtype: dtype.name(),
            weights_dtype: weights_dtype.name(),
            kernels: capabilities(),
            threads: pools.iter().map(|pool| pool.threads()).sum(),
            tensor_parallel_size: world_size,
            kv_blocks: kv_blocks as usize,
            block_tokens,
            kv_cache_bytes: u64::from(kv_blocks) * of_all(kv_shape.block_bytes()),
            max_model_len,
            max_num_seqs,
            max_num_batched_tokens,
            prefix_caching: config.prefix_caching,
            limits,
            cost,
        };
        // Ranks are at rest when tokens are chosen.
        let pool = if world_size == 1 { pools.remove(0) } else { Arc::new(Pool::new(threads)) };
        let step = Step::with_capacity(most.tokens, max_num_seqs, max_model_len.div_ceil(block_tokens), block_tokens);
        events.emit(Fact::EngineReady { kv_blocks: facts.kv_blocks, block_tokens });
        let vocab_size = model.config.vocab_size;
        Ok(Self { facts, vocab_size, ranks, step, sampler: Sampler::default(), pool, watcher: None })
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

/// What all ranks have in common.
struct Parts {
    world_size: usize,
    /// Of all ranks together.
    threads: usize,
    weights_dtype: Dtype,
    validation: Validation,
    extent: Extent,
    kv_shape: KvShape,
    kv_blocks: usize,
}

impl Parts {
    /// Reads and packs the weights of one rank after the other and gives each its cache, and counts them in `cost`.
    fn load(
        &self,
        model: &Model,
        cost: &mut Cost,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<(Ranks, Vec<Arc<Pool>>), Error> {
        let world_size = self.world_size;
        let group = (world_size > 1).then(|| Group::new(world_size));
        let (mut ranks, mut pools) = (Vec::with_capacity(world_size), Vec::with_capacity(world_size));
        for rank in 0..world_size {
            // As many threads as there are ranks at least; no more than asked for where those are enough.
            let pool = Arc::new(Pool::new((self.threads / world_size).max(1)));
            let shard = Shard { rank, world_size };
            let wanted = loading::Wanted { shard, dtype: self.weights_dtype, validation: self.validation };
            let weights = loading::load(model, wanted, &pool, events, cancel)?;
            cost.add_weights(&weights);
            let communicator: Box<dyn Communicator> = match &group {
                Some(group) => Box::new(Member::new(group, rank)),
                None => Box::new(Solo),
            };
            let decoder = Decoder::new(model.config.clone(), weights, self.extent, communicator, Arc::clone(&pool))?;
            ranks.push(Rank { decoder, cache: KvCache::new(self.kv_shape, self.kv_blocks)? });
            pools.push(pool);
        }
        let others = ranks.split_off(1);
        Ok((Ranks::new(ranks.remove(0), others, group), pools))
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

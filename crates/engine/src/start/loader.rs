//! Loading a model, phase by phase: plan, open, meet the other nodes, measure, load, profile.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::instructions::instructions;
use super::load::RankLoader;
use super::plan::{self, LoadPlan, Parallelism};
use super::roofline::{self, CpuNodes};
use super::{capacity, profile};
use crate::cost::Cost;
use crate::cpu::platform::Cpu;
use crate::device::platform::{DeviceHandles, NodeDevices, Platform};
use crate::engine::Engine;
use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use crate::forward::replay::ReplaySizes;
use crate::forward::sampler::Sampler;
use crate::parallel::executor::Executor;
use crate::parallel::nodes::RendezvousHandler;
use crate::parallel::world::World;
use crate::report::CandleReport;
use crate::schedule::limits::EngineLimits;
use flashjob_config::EngineConfig;
use flashjob_cpu::{Limits, TooLittleMemory, cpu_quota_threads};
use flashjob_event::{Events, Fact};
use flashjob_model::Model;

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
        Self::load_on(&Cpu, model, config, events, cancel)
    }

    /// Decides how much memory goes where, reads the weights to where they are used, and allocates the KV cache.
    ///
    /// # Errors
    /// [`Error::TensorParallel`], [`Error::Setting`] and [`Error::DoesNotFit`] before a weight is read; then
    /// [`Error::Model`] and [`Error::Cancelled`].
    pub fn load_on(
        platform: &'static dyn Platform,
        model: &Model,
        config: &EngineConfig,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        Loading { platform, model, config, rendezvous: None, events, cancel }.load()
    }

    /// The same for this node's ranks of a model that the nodes of `rendezvous` share.
    ///
    /// # Errors
    /// As [`Engine::load_on`]; [`Error::Machines`] and [`Error::Ended`] where another node does not come or is gone.
    pub fn load_distributed(
        platform: &'static dyn Platform,
        model: &Model,
        config: &EngineConfig,
        rendezvous: &dyn RendezvousHandler,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        Loading { platform, model, config, rendezvous: Some(rendezvous), events, cancel }.load()
    }
}

/// Arguments of loading.
struct Loading<'a> {
    platform: &'static dyn Platform,
    model: &'a Model,
    config: &'a EngineConfig,
    rendezvous: Option<&'a dyn RendezvousHandler>,
    events: &'a Events,
    cancel: &'a CancellationToken,
}

/// Limits of the hardware, or why they were not measured; `None` where that was not asked for.
type Measured = Option<Result<Limits, TooLittleMemory>>;

impl Loading<'_> {
    fn load(self) -> Result<Engine, Error> {
        let Self { model, config, events, cancel, .. } = self;
        let plan = self.plan()?;
        let handles = self.platform.open(plan.parallelism.ranks_per_node, plan.cpus, plan.dtype)?;
        let budget = plan.budget(handles.free_bytes()?);
        let planned = capacity::plan(config, plan.limits, &budget)?;
        // Everything that can be refused on this node alone has been: only now do others wait for it.
        let world = self.meet(&plan)?;
        // Block tables are computed once, by the leader: a block must exist on every node.
        let limits = world.agree(planned)?;
        // Before there are weights: it takes memory of its own for a moment.
        let measured = self.measure(handles.as_ref(), &world)?;
        let kernels = handles.kernels();
        let devices = handles.ready(&limits, plan.shape)?;
        let loader = RankLoader { model, config, plan: &plan, devices: devices.as_ref(), limits };
        let mut batch = Arc::new(ForwardBatch::with_capacity(&limits));
        let kv_bytes_per_token = plan.kv_shape.token_bytes().saturating_mul(plan.parallelism.world_size as u64);
        let mut cost = Cost::new(&model.config, kv_bytes_per_token);
        let (executor, sized) = match self.platform.profiles() {
            false => (loader.load(world, limits.num_blocks, &mut cost, events, cancel)?, limits),
            true => profile::load_and_profile(&loader, world, &budget, &mut batch, &mut cost, (events, cancel))?,
        };
        // The last wait for other nodes: an engine that is ready is ready everywhere.
        let threads = all_loaded(&executor, devices.as_ref(), &mut cost)?;
        let report = report(&plan, sized, config, kernels, threads, measured, cost);
        events.emit(Fact::EngineReady { kv_blocks: report.kv_blocks, block_tokens: report.block_size });
        // Buffers were allocated for `limits`, of which the cache may hold less by now.
        let bounds = EngineLimits { num_blocks: sized.num_blocks, ..limits };
        let replay = plan.replays.then_some(ReplaySizes {
            max_sequences: bounds.max_num_logits(),
            max_blocks: bounds.max_blocks_per_seq(),
            spare_block: bounds.num_blocks as u32,
        });
        let measured_cpus = report.limits.is_some().then_some(plan.cpus);
        Ok(Engine {
            report,
            limits: sized,
            bounds,
            executor,
            batch,
            replay,
            sampler: Sampler::default(),
            device: devices.sampling(),
            watcher: None,
            platform: self.platform,
            measured_cpus,
        })
    }

    fn plan(&self) -> Result<LoadPlan, Error> {
        let Self { platform, model, config, rendezvous, .. } = *self;
        let nodes = rendezvous.map_or(1, RendezvousHandler::num_nodes);
        let parallelism = Parallelism::new(platform, &model.config, config, nodes)?;
        let threads = config.threads.map_or_else(cpu_quota_threads, |threads| threads.get());
        let cpus = CpuNodes { threads, isa: instructions(config.instruction_set)?, nodes };
        let dtype = plan::dtype(config, model.dtype);
        let weights_dtype = platform.weights_dtype(model, dtype);
        Ok(LoadPlan::new(platform, &model.config, config, parallelism, [dtype, weights_dtype], cpus))
    }

    /// All ranks of the model, once every node has come and means the same job.
    fn meet(&self, plan: &LoadPlan) -> Result<World, Error> {
        let Parallelism { world_size, ranks_per_node, .. } = plan.parallelism;
        let Some(rendezvous) = self.rendezvous else {
            return Ok(World { size: world_size, here: 0..world_size, nodes: None });
        };
        let first = rendezvous.node_rank() * ranks_per_node;
        let nodes = rendezvous.rendezvous(self.model, &plan.node_settings(self.config))?;
        Ok(World { size: world_size, here: first..first + ranks_per_node, nodes: Some(nodes) })
    }

    /// Measures and states the limits of all nodes together, which are taken to be alike.
    fn measure(&self, handles: &dyn DeviceHandles, world: &World) -> Result<Measured, Error> {
        if !self.config.measure_limits || world.follows() {
            return Ok(None);
        }
        let measured = handles.limits()?;
        if let Ok(limits) = measured {
            roofline::state(limits, self.events);
        }
        Ok(Some(measured))
    }
}

/// Waits for all nodes, counts in what they have loaded, and gives the CPU threads of all of them.
fn all_loaded(executor: &Executor, devices: &dyn NodeDevices, cost: &mut Cost) -> Result<usize, Error> {
    let threads = devices.threads();
    let elsewhere = executor.world().all_loaded(&cost.loaded(threads))?;
    elsewhere.iter().for_each(|node| cost.add_node(node));
    Ok(elsewhere.iter().fold(threads, |sum, node| sum.saturating_add(node.threads)))
}

/// The report of an engine.
fn report(
    plan: &LoadPlan,
    limits: EngineLimits,
    config: &EngineConfig,
    kernels: String,
    threads: usize,
    measured: Measured,
    cost: Cost,
) -> CandleReport {
    let Parallelism { world_size, num_nodes, .. } = plan.parallelism;
    let cache_bytes = limits.num_blocks as u64 * plan.kv_shape.block_bytes();
    CandleReport {
        device: plan.platform.name(),
        dtype: plan.dtype.name(),
        weights_dtype: plan.weights_dtype.name(),
        kernels,
        threads,
        tensor_parallel_size: world_size,
        num_nodes,
        kv_blocks: limits.num_blocks,
        block_size: limits.block_size,
        kv_cache_bytes: cache_bytes.saturating_mul(world_size as u64),
        max_model_len: limits.max_model_len,
        max_num_seqs: limits.max_num_seqs,
        max_num_batched_tokens: limits.max_num_batched_tokens,
        prefix_caching: config.prefix_caching,
        cuda_graphs: plan.replays,
        limits: measured.and_then(Result::ok),
        limits_not_measured: measured.and_then(Result::err).map(|error| error.to_string()),
        cost,
    }
}

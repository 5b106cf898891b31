//! Loading a model, phase by phase: plan, open, meet the other nodes, measure, load, profile.

use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::formats::Formats;
use super::instructions::instructions;
use super::load::RankLoader;
use super::parallelism::Parallelism;
use super::plan::LoadPlan;
use super::roofline::{self, CpuNodes};
use super::{capacity, profile};
use crate::cost::Cost;
use crate::cpu::platform::Cpu;
use crate::data_parallel::Engines;
use crate::device::platform::{Determinism, DeviceHandles, Installed, NodeDevices, Platform};
use crate::engine::Engine;
use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use crate::forward::replay::ReplaySizes;
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

    /// As [`Engines::load_on`], whatever `data-parallel-size` is: a single engine.
    ///
    /// # Errors
    /// As there.
    pub fn load_on(
        platform: &'static dyn Platform,
        model: &Model,
        config: &EngineConfig,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let config = &EngineConfig { data_parallel_size: NonZeroUsize::new(1), ..config.clone() };
        Loading { platform, model, config, rendezvous: None, events, cancel }.load_one()
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
        Loading { platform, model, config, rendezvous: Some(rendezvous), events, cancel }.load_one()
    }
}

impl Engines {
    /// Decides how much memory goes where, reads the weights to where they are used, and allocates the KV caches of all engines.
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

/// What decides which devices are opened.
struct Ranks {
    parallelism: Parallelism,
    cpus: CpuNodes,
    formats: Formats,
}

/// Limits of the hardware, or why they were not measured; `None` where that was not asked for.
type Measured = Option<Result<Limits, TooLittleMemory>>;

impl Loading<'_> {
    fn load_one(self) -> Result<Engine, Error> {
        Ok(self.load()?.into_first())
    }

    fn load(self) -> Result<Engines, Error> {
        let Self { model, config, events, cancel, .. } = self;
        let Ranks { parallelism, cpus, formats } = self.ranks()?;
        let Parallelism { data_parallel_size, ranks_per_node, .. } = parallelism;
        let handles =
            self.platform.open(data_parallel_size * ranks_per_node, cpus, formats.dtype, config.deterministic)?;
        let free_bytes = handles.free_bytes()?;
        let plan = LoadPlan::new(self.platform, &model.config, config, parallelism, &formats, cpus, free_bytes);
        let budget = plan.budget;
        let planned = capacity::plan(config, plan.limits, &budget)?;
        // Everything that can be refused on this node alone has been: only now do others wait for it.
        let world = self.meet(&plan)?;
        // Block tables are computed once, by the leader: a block must exist on every node.
        let limits = world.agree(planned)?;
        // Before there are weights: it takes memory of its own for a moment.
        let measured = self.measure(handles.as_ref(), &world)?;
        let kernels = handles.kernels();
        let devices = handles.ready(&limits, plan.shape, data_parallel_size)?;
        let loader = RankLoader { model, config, plan: &plan, devices: &devices, limits };
        let kv_bytes_per_token = plan.kv_shape.token_bytes().saturating_mul(plan.parallelism.world_size as u64);
        let mut cost = Cost::new(&model.config, kv_bytes_per_token);
        let mut loaded = match self.platform.profiles() {
            false => {
                let executors = loader.load(world, limits.num_blocks, &mut cost, events, cancel)?;
                executors.into_iter().map(|executor| (executor, limits)).collect()
            }
            true => profile::load_and_profile(&loader, world, &budget, &mut cost, (events, cancel))?,
        };
        // A request that one engine takes any other could have taken.
        let max_model_len = loaded.iter().map(|(_, sized)| sized.max_model_len).min().unwrap_or(0);
        loaded.iter_mut().for_each(|(_, sized)| sized.max_model_len = max_model_len);
        let common = Loaded { plan: &plan, config, limits, kernels, measured, cost };
        let engines = loaded.into_iter().zip(&devices);
        let engines = engines.map(|(loaded, devices)| common.engine(loaded, devices.as_ref()));
        let engines = Engines::new(engines.collect::<Result<_, Error>>()?);
        let CandleReport { kv_blocks, block_size: block_tokens, .. } = *engines.report();
        events.emit(Fact::EngineReady { engines: data_parallel_size, kv_blocks, block_tokens });
        Ok(engines)
    }

    fn ranks(&self) -> Result<Ranks, Error> {
        let Self { platform, model, config, rendezvous, .. } = *self;
        let nodes = rendezvous.map_or(1, RendezvousHandler::num_nodes);
        let threads = config.threads.map_or_else(cpu_quota_threads, |threads| threads.get());
        let cpus = CpuNodes { threads, isa: instructions(config.instruction_set)?, nodes };
        let formats = Formats::new(platform, model, config);
        let is_useful = |parallelism, Installed { memory_bytes, .. }: Installed| {
            let plan = LoadPlan::new(platform, &model.config, config, parallelism, &formats, cpus, memory_bytes);
            capacity::is_useful(config, plan.limits, &plan.budget)
        };
        let parallelism = Parallelism::new(platform, &model.config, config, nodes, &is_useful)?;
        if let Determinism::OnRequest { most_ranks, .. } = platform.determinism()
            && config.deterministic
            && parallelism.world_size > most_ranks
        {
            let ranks = parallelism.world_size;
            return Err(Error::Setting(format!(
                "deterministic=true cannot be had with tensor-parallel-size={ranks}: the order in which {ranks} ranks are summed depends                  on what else is in a step; set tensor-parallel-size to {most_ranks} or less, or leave it out"
            )));
        }
        Ok(Ranks { parallelism, cpus, formats })
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

/// Everything that the engines of a model have in common.
struct Loaded<'a> {
    plan: &'a LoadPlan,
    config: &'a EngineConfig,
    /// The largest step that buffers were allocated for.
    limits: EngineLimits,
    kernels: String,
    measured: Measured,
    /// That of one engine's weights on this node.
    cost: Cost,
}

impl Loaded<'_> {
    /// An engine of these ranks, whose cache is `sized`.
    fn engine(&self, (executor, sized): (Executor, EngineLimits), devices: &dyn NodeDevices) -> Result<Engine, Error> {
        let mut cost = self.cost.clone();
        // The last wait for other nodes: an engine that is ready is ready everywhere.
        let threads = all_loaded(&executor, devices, &mut cost)?;
        // Of several ranks only the first one has the tokens that a step begins with.
        let async_scheduling = devices.sampling().runs_ahead() && executor.world().size == 1;
        let report = CandleReport { async_scheduling, ..self.report(sized, threads, cost) };
        // Buffers were allocated for `limits`, of which the cache may hold less by now.
        let bounds = EngineLimits { num_blocks: sized.num_blocks, ..self.limits };
        let replay = self.plan.replays.then_some(ReplaySizes {
            max_sequences: bounds.max_num_logits(),
            max_blocks: bounds.max_blocks_per_seq(),
            spare_block: bounds.num_blocks as u32,
        });
        let measured_cpus = report.limits.is_some().then_some(self.plan.cpus);
        Ok(Engine {
            report,
            limits: sized,
            bounds,
            executor,
            batch: Arc::new(ForwardBatch::with_capacity(&self.limits)),
            replay,
            loaded_reasons: self.plan.limit_reasons,
            chosen: Vec::new(),
            logprobs: Vec::new(),
            device: devices.sampling(),
            watcher: None,
            reads_at_once: false,
            platform: self.plan.platform,
            measured_cpus,
        })
    }

    fn report(&self, limits: EngineLimits, threads: usize, cost: Cost) -> CandleReport {
        let Self { plan, config, kernels, measured, .. } = self;
        let Parallelism { data_parallel_size, world_size, num_nodes, .. } = plan.parallelism;
        let cache_bytes = limits.num_blocks as u64 * plan.kv_shape.block_bytes();
        CandleReport {
            device: plan.platform.name(),
            dtype: plan.dtype.name(),
            weights_dtype: plan.weights.name.clone(),
            kernels: kernels.clone(),
            threads,
            data_parallel_size,
            tensor_parallel_size: world_size,
            num_nodes,
            kv_blocks: limits.num_blocks,
            block_size: limits.block_size,
            kv_cache_bytes: cache_bytes.saturating_mul(world_size as u64),
            max_model_len: limits.max_model_len,
            max_num_seqs: limits.max_num_seqs,
            max_num_batched_tokens: limits.max_num_batched_tokens,
            limit_reasons: plan.limit_reasons,
            prefix_caching: config.prefix_caching,
            schedule: config.schedule,
            cuda_graphs: plan.replays,
            deterministic: plan.platform.determinism().holds(config.deterministic),
            async_scheduling: false,
            limits: measured.as_ref().and_then(|measured| measured.as_ref().ok().copied()),
            limits_not_measured: measured.as_ref().and_then(|measured| Some(measured.as_ref().err()?.to_string())),
            cost,
        }
    }
}

/// Waits for all nodes, counts in what they have loaded, and gives the CPU threads of all of them.
fn all_loaded(executor: &Executor, devices: &dyn NodeDevices, cost: &mut Cost) -> Result<usize, Error> {
    let threads = devices.threads();
    let elsewhere = executor.world().all_loaded(&cost.loaded(threads))?;
    elsewhere.iter().for_each(|node| cost.add_node(node));
    Ok(elsewhere.iter().fold(threads, |sum, node| sum.saturating_add(node.threads)))
}

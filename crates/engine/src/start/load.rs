//! Ranks in the making: each gets its part of the weights, its cache, and its place among the others.
//!
//! Ranks are loaded one after the other, each with all threads that read, and the same rank of all engines at once: so the block map and
//! the page cache see one pass over the files. This file knows nothing of requests.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::plan::LoadPlan;
use super::weights::{self, ShardFormat};
use crate::cost::Cost;
use crate::device::Device;
use crate::device::platform::NodeDevices;
use crate::error::Error;
use crate::forward::decoder::Decoder;
use crate::forward::kv_cache::KvCache;
use crate::parallel::communicator::{Connected, Solo};
use crate::parallel::executor::{Executor, Rank};
use crate::parallel::world::World;
use crate::schedule::limits::EngineLimits;
use flashjob_config::EngineConfig;
use flashjob_event::Events;
use flashjob_model::{Model, Shard, ShardShape, Validation};

/// Everything that the ranks of this node have in common.
pub struct RankLoader<'a> {
    /// Weights and their configuration.
    pub model: &'a Model,
    /// Settings of the user.
    pub config: &'a EngineConfig,
    /// Decisions that were made before devices were opened.
    pub plan: &'a LoadPlan,
    /// Devices of the ranks here, by engine.
    pub devices: &'a [Box<dyn NodeDevices>],
    /// The largest step, as all nodes agreed on it.
    pub limits: EngineLimits,
}

impl RankLoader<'_> {
    /// Reads the weights of one rank of `world` here after the other, for all engines at once, counts them in the `cost` of one engine,
    /// and gives each rank a cache of `num_blocks` and the spare ones. Executors are by engine.
    ///
    /// # Errors
    /// [`Error::Model`], [`Error::DoesNotFit`], [`Error::Cancelled`], and those of connecting ranks.
    pub fn load(
        &self,
        world: World,
        num_blocks: usize,
        cost: &mut Cost,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Vec<Executor>, Error> {
        let config = &self.model.config;
        let connected = self.devices.iter().map(|devices| self.connect(devices.as_ref(), &world));
        let (mut communicators, groups): (Vec<_>, Vec<_>) = connected
            .map(|connected| connected.map(|Connected { communicators, group }| (communicators.into_iter(), group)))
            .collect::<Result<Vec<_>, Error>>()?
            .into_iter()
            .unzip();
        let total_bytes = weights::total_bytes(self.model, world.shards())?;
        let validation = if self.config.validate_weights { Validation::Finite } else { Validation::Trust };
        let mut ranks: Vec<Vec<Rank>> = self.devices.iter().map(|_| Vec::with_capacity(world.here.len())).collect();
        for (shard, index) in world.shards().zip(0..) {
            let format = ShardFormat { shard, format: self.plan.weights.format, validation };
            let devices: Vec<_> = self.devices.iter().map(|devices| Arc::clone(&devices.ranks()[index])).collect();
            let weights = weights::load(self.model, format, &devices, total_bytes, events, cancel)?;
            if let Some(of_first) = weights.first() {
                cost.add_weights(of_first.bytes());
            }
            let engines = ranks.iter_mut().zip(&mut communicators);
            for ((weights, device), (ranks, communicators)) in weights.into_iter().zip(devices).zip(engines) {
                // Only now: before there are weights, what the cache takes might be missing for reading them.
                let cache = self.cache(device.as_ref(), num_blocks)?;
                let (limits, format) = (&self.limits, self.plan.format);
                let communicator = communicators.next().expect("each rank has a communicator");
                let decoder = Decoder::new(config.clone(), weights, limits, format, communicator, device)?;
                ranks.push(Rank { decoder, cache });
            }
        }
        let executor = |(mut ranks, group): (Vec<Rank>, _)| {
            let others = ranks.split_off(1);
            Executor::new(world.clone(), ranks.remove(0), others, group)
        };
        Ok(ranks.into_iter().zip(groups).map(executor).collect())
    }

    fn connect(&self, devices: &dyn NodeDevices, world: &World) -> Result<Connected, Error> {
        if world.size == 1 {
            return Ok(Connected { communicators: vec![Box::new(Solo)], group: None });
        }
        let config = &self.model.config;
        let width = |rank| Ok(ShardShape::new(config, Shard { rank, world_size: world.size })?.vocabulary.len());
        let vocabulary = (0..world.size).map(width).collect::<Result<_, Error>>()?;
        devices.connect(world, self.limits.max_num_logits(), &vocabulary)
    }

    fn cache(&self, device: &dyn Device, num_blocks: usize) -> Result<KvCache, Error> {
        KvCache::new(self.plan.kv_shape, num_blocks + self.limits.num_spare_blocks, device)
    }

    /// A cache of `num_blocks` and the spare ones for each rank of an engine on `devices`.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`].
    pub fn caches(&self, devices: &dyn NodeDevices, num_blocks: usize) -> Result<Vec<KvCache>, Error> {
        devices.ranks().iter().map(|device| self.cache(device.as_ref(), num_blocks)).collect()
    }
}

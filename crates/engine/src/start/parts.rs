//! How ranks come to be: each gets its part of the weights, its cache, and its place among the others.
//!
//! On a GPU the cache is sized last: the largest step is computed beforehand, and what is free after it is what there is. This
//! file knows nothing of requests.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::cluster::connect::{Connected, connect};
use crate::cluster::executor::{Rank, Ranks};
use crate::cluster::world::World;
use crate::cost::Cost;
use crate::error::Error;
use crate::forward::batch::Step;
use crate::forward::batch::wire_format::StepBounds;
use crate::forward::decoder::{Decoder, Extent};
use crate::forward::device::Processor;
use crate::forward::kv_cache::{KvCache, KvShape};
use crate::start::capacity::{self, Capacity, Demand};
use crate::start::loading::{self, Wanted};
use crate::start::profile::Profile;
use flashjob_config::EngineConfig;
use flashjob_event::Events;
use flashjob_model::{Dtype, Model, Shard, ShardShape, Validation};

/// What all ranks here have in common.
pub struct Parts<'a> {
    /// What is loaded.
    pub model: &'a Model,
    /// What was asked for.
    pub config: &'a EngineConfig,
    /// By rank, of those here.
    pub processors: &'a [Arc<Processor>],
    /// How matrices are kept.
    pub weights_dtype: Dtype,
    /// What is made sure of while loading.
    pub validation: Validation,
    /// The largest step.
    pub extent: Extent,
    /// Of each rank's cache.
    pub kv_shape: KvShape,
    /// Blocks beyond those that sequences get.
    pub spare_blocks: usize,
}

impl Parts<'_> {
    /// Reads the weights of one rank of `world` here after the other, counts them in `cost`, and gives each a cache of `kv_blocks`.
    ///
    /// # Errors
    /// [`Error::Model`], [`Error::DoesNotFit`], [`Error::Cancelled`], and those of connecting ranks.
    pub fn load(
        &self,
        world: World,
        kv_blocks: usize,
        cost: &mut Cost,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Ranks, Error> {
        let config = &self.model.config;
        let width = |rank| Ok(ShardShape::new(config, Shard { rank, world_size: world.size })?.vocabulary.len());
        let vocabulary = (0..world.size).map(width).collect::<Result<_, Error>>()?;
        let Connected { communicators, group } =
            connect(&world, self.processors, self.extent.most.wanted, &vocabulary)?;
        let total_bytes = loading::total_bytes(self.model, world.shards())?;
        let mut ranks = Vec::with_capacity(self.processors.len());
        for ((shard, processor), communicator) in world.shards().zip(self.processors).zip(communicators) {
            let wanted = Wanted { shard, dtype: self.weights_dtype, validation: self.validation };
            let weights = loading::load(self.model, wanted, processor, total_bytes, events, cancel)?;
            cost.add_weights(weights.bytes());
            let cache = self.cache(processor, kv_blocks)?;
            let processor = Arc::clone(processor);
            ranks.push(Rank {
                decoder: Decoder::new(config.clone(), weights, self.extent, communicator, processor)?,
                cache,
            });
        }
        let others = ranks.split_off(1);
        Ok(Ranks::new(world, ranks.remove(0), others, group))
    }

    /// Loads ranks on GPUs and sizes their caches by what is free once they have computed the largest step; `before` is what
    /// they had to begin with, and what was planned.
    ///
    /// # Errors
    /// As [`Self::load`], and of computing that step.
    pub fn load_and_profile(
        &self,
        world: World,
        before: &Demand,
        step: &mut Arc<Step>,
        cost: &mut Cost,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<(Ranks, Capacity), Error> {
        let profile = Profile::new(self.extent, before.max_num_seqs);
        let mut ranks = self.load(world, profile.blocks(), cost, events, cancel)?;
        profile.run(&mut ranks, step, self.bounds(before.max_num_seqs, profile.blocks()), cancel)?;
        let of_profile = (profile.blocks() + self.spare_blocks) as u64 * self.kv_shape.block_bytes();
        let free_bytes = self.processors.iter().map(|processor| processor.free_bytes());
        let free_bytes = free_bytes.collect::<candle_core::Result<Vec<_>>>();
        let free_bytes = free_bytes.map_err(Error::compute("ask a GPU for its memory"))?.into_iter().flatten().min();
        let used = before.free_bytes.zip(free_bytes).map(|(before, now)| before.saturating_sub(now + of_profile));
        // All that is there beyond the cache, measured.
        let demand = match used {
            Some(weight_bytes) => Demand { weight_bytes, workspace_bytes: 0, ..*before },
            None => *before,
        };
        // What it held is free again before the caches take its place.
        ranks.change_caches(self.caches(0)?)?;
        let mut capacity = capacity::plan(self.config, &demand)?;
        loop {
            match self.caches(capacity.kv_blocks as usize) {
                Ok(caches) => {
                    let least = ranks.world().agree(capacity)?;
                    let caches = match least == capacity {
                        true => caches,
                        false => {
                            drop(caches);
                            self.caches(least.kv_blocks as usize)?
                        }
                    };
                    ranks.change_caches(caches)?;
                    return Ok((ranks, least));
                }
                Err(Error::DoesNotFit { .. }) if self.config.kv_cache_memory_bytes.is_none() => {
                    // What is free is not always free in one piece.
                    capacity = capacity::smaller(self.config, capacity)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What a step may hold, of a cache with so many blocks.
    pub fn bounds(&self, max_num_seqs: usize, kv_blocks: usize) -> StepBounds {
        let Extent { most, max_model_len, .. } = self.extent;
        StepBounds {
            tokens: most.tokens,
            sequences: max_num_seqs,
            rows: most.wanted,
            max_model_len,
            blocks: kv_blocks + self.spare_blocks,
            vocab_size: self.model.config.vocab_size,
        }
    }

    fn cache(&self, processor: &Processor, kv_blocks: usize) -> Result<KvCache, Error> {
        KvCache::new(self.kv_shape, kv_blocks + self.spare_blocks, processor.device())
    }

    fn caches(&self, kv_blocks: usize) -> Result<Vec<KvCache>, Error> {
        self.processors.iter().map(|processor| self.cache(processor, kv_blocks)).collect()
    }
}

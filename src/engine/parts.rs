//! How ranks come to be: each gets its part of the weights, its cache, and its place among the others.
//!
//! On a GPU the cache is sized last: the largest step is computed beforehand, and what is free after it is what there is. This
//! file knows nothing of requests.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Error;
use super::capacity::{self, Capacity, Demand};
use super::communicator::{self, Connected};
use super::decoder::{Decoder, Extent};
use super::facts::Cost;
use super::kv_cache::{KvCache, KvShape};
use super::loading::{self, Wanted};
use super::processor::Processor;
use super::profile::Profile;
use super::ranks::{Rank, Ranks};
use super::step::Step;
use crate::config::EngineConfig;
use crate::event::Events;
use crate::model::{Dtype, Model, Shard, ShardShape, Validation};

/// What all ranks have in common.
pub struct Parts<'a> {
    /// What is loaded.
    pub model: &'a Model,
    /// By rank.
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
    /// Reads the weights of one rank after the other, counts them in `cost`, and gives each a cache of `kv_blocks`.
    ///
    /// # Errors
    /// [`Error::Model`], [`Error::DoesNotFit`], [`Error::Cancelled`], and those of connecting ranks.
    pub fn load(
        &self,
        kv_blocks: usize,
        cost: &mut Cost,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<Ranks, Error> {
        let config = &self.model.config;
        let world_size = self.processors.len();
        let widest = ShardShape::new(config, Shard { rank: 0, world_size })?.vocabulary.len();
        let Connected { communicators, group } =
            communicator::connect(self.processors, [self.extent.most.wanted, widest])?;
        let mut ranks = Vec::with_capacity(world_size);
        for ((rank, processor), communicator) in self.processors.iter().enumerate().zip(communicators) {
            let shard = Shard { rank, world_size };
            let wanted = Wanted { shard, dtype: self.weights_dtype, validation: self.validation };
            let weights = loading::load(self.model, wanted, processor, events, cancel)?;
            cost.add_weights(&weights);
            let cache = self.cache(processor, kv_blocks)?;
            let processor = Arc::clone(processor);
            ranks.push(Rank {
                decoder: Decoder::new(config.clone(), weights, self.extent, communicator, processor)?,
                cache,
            });
        }
        let others = ranks.split_off(1);
        Ok(Ranks::new(ranks.remove(0), others, group))
    }

    /// Loads ranks on GPUs and sizes their caches by what is free once they have computed the largest step; `before` is what
    /// they had to begin with, and what was planned.
    ///
    /// # Errors
    /// As [`Self::load`], and of computing that step.
    pub fn load_and_profile(
        &self,
        config: &EngineConfig,
        before: &Demand,
        step: &mut Arc<Step>,
        cost: &mut Cost,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<(Ranks, Capacity), Error> {
        let profile = Profile::new(self.extent, before.max_num_seqs);
        let mut ranks = self.load(profile.blocks(), cost, events, cancel)?;
        profile.run(&mut ranks, step, cancel)?;
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
        let mut capacity = capacity::plan(config, &demand)?;
        loop {
            match self.caches(capacity.kv_blocks as usize) {
                Ok(caches) => {
                    ranks.change_caches(caches)?;
                    return Ok((ranks, capacity));
                }
                Err(Error::DoesNotFit { .. }) if config.kv_cache_memory_bytes.is_none() => {
                    // What is free is not always free in one piece.
                    capacity = capacity::smaller(config, capacity)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn cache(&self, processor: &Processor, kv_blocks: usize) -> Result<KvCache, Error> {
        KvCache::new(self.kv_shape, kv_blocks + self.spare_blocks, processor.device())
    }

    fn caches(&self, kv_blocks: usize) -> Result<Vec<KvCache>, Error> {
        self.processors.iter().map(|processor| self.cache(processor, kv_blocks)).collect()
    }
}

//! Memory that computing takes besides weights and cache: found by computing the largest step once.
//!
//! Libraries allocate when they are first used, and drivers load kernels when they are first launched; neither says beforehand how
//! much. So on such devices the cache is sized last, as vLLM does: what is free after the largest step is what there is. All sequences of
//! that step share the blocks of one: its keys and values mean nothing.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::capacity::{self, MemoryBudget};
use super::load::RankLoader;
use crate::cost::Cost;
use crate::device::platform::NodeDevices;
use crate::error::Error;
use crate::forward::batch::{ForwardBatch, LogitsRows};
use crate::parallel::executor::Executor;
use crate::parallel::world::World;
use crate::schedule::blocks::{BlockPool, BlockTable};
use crate::schedule::limits::EngineLimits;
use flashjob_event::Events;

/// The largest step, and a step of decoding as many sequences.
#[derive(Clone, Copy, Debug)]
struct Profile {
    num_seqs: usize,
    /// Tokens of each.
    length: usize,
    block_size: usize,
}

impl Profile {
    fn new(limits: &EngineLimits) -> Self {
        let num_seqs = limits.max_num_logits().max(1);
        let length = (limits.max_num_batched_tokens / num_seqs).clamp(1, limits.max_model_len);
        Self { num_seqs, length, block_size: limits.block_size }
    }

    /// Blocks of the cache that it computes with.
    fn num_blocks(&self) -> usize {
        self.length.div_ceil(self.block_size)
    }

    /// Computes both steps; on a worker node, those that the leader computes.
    fn run(
        &self,
        executor: &mut Executor,
        batch: &mut Arc<ForwardBatch>,
        limits: &EngineLimits,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        if executor.world().follows() {
            return (0..2).try_for_each(|_| executor.follow(batch, limits, cancel));
        }
        let mut table = BlockTable::default();
        // There are as many blocks as it asks for.
        let _grown = BlockPool::new(self.num_blocks() as u32, self.block_size).grow(&mut table, self.length);
        let tokens = vec![0; self.length];
        // Prefill and decode: kernels and cuBLAS choose different code for them, and each loads its own.
        for (tokens, start) in [(&tokens[..], 0), (&tokens[..1], self.length - 1)] {
            let largest = ForwardBatch::lent(batch);
            largest.begin(self.length);
            for _ in 0..self.num_seqs {
                largest.push(tokens, start, table.indices(), LogitsRows::Last);
            }
            executor.forward(batch, cancel, |_logits| Ok(()))?;
        }
        Ok(())
    }
}

/// Loads ranks, and sizes the caches of each engine by what is free once it has computed the largest step; `before` is what
/// they had to begin with, and what was planned. Executors and what they have room for are by engine.
///
/// # Errors
/// As [`RankLoader::load`], and of computing that step.
pub fn load_and_profile(
    loader: &RankLoader<'_>,
    world: World,
    before: &MemoryBudget,
    cost: &mut Cost,
    (events, cancel): (&Events, &CancellationToken),
) -> Result<Vec<(Executor, EngineLimits)>, Error> {
    let profile = Profile::new(&loader.limits);
    let limits = EngineLimits { num_blocks: profile.num_blocks(), ..loader.limits };
    let executors = loader.load(world, limits.num_blocks, cost, events, cancel)?;
    let mut batch = Arc::new(ForwardBatch::with_capacity(&limits));
    let sized = |(mut executor, devices): (Executor, &dyn NodeDevices)| {
        profile.run(&mut executor, &mut batch, &limits, cancel)?;
        let budget = measured(loader, devices, before, limits.num_allocated_blocks())?;
        // What the small cache held is free again before the large one takes its place.
        executor.change_caches(loader.caches(devices, 0)?)?;
        let sized = allocate_caches(loader, devices, &mut executor, &budget)?;
        Ok::<_, Error>((executor, sized))
    };
    executors.into_iter().zip(loader.devices.iter().map(AsRef::as_ref)).map(sized).collect()
}

/// Needs as they turned out on `devices` with a cache of `num_blocks` blocks.
fn measured(
    loader: &RankLoader<'_>,
    devices: &dyn NodeDevices,
    before: &MemoryBudget,
    num_blocks: usize,
) -> Result<MemoryBudget, Error> {
    let cache_bytes = num_blocks as u64 * loader.plan.kv_shape.block_bytes();
    let free_bytes = devices.ranks().iter().map(|device| device.free_bytes());
    let free_bytes = free_bytes.collect::<candle_core::Result<Vec<_>>>();
    let free_bytes = free_bytes.map_err(Error::compute("ask a device for its memory"))?.into_iter().flatten().min();
    let used = before.free_bytes.zip(free_bytes).map(|(before, now)| before.saturating_sub(now + cache_bytes));
    // Everything that is there beyond the cache counts as weights: libraries and kernels, too.
    Ok(match used {
        Some(weight_bytes) => MemoryBudget { weight_bytes, workspace_bytes: 0, ..*before },
        None => *before,
    })
}

/// Gives each rank the largest cache that all nodes have room for.
fn allocate_caches(
    loader: &RankLoader<'_>,
    devices: &dyn NodeDevices,
    executor: &mut Executor,
    budget: &MemoryBudget,
) -> Result<EngineLimits, Error> {
    let mut limits = capacity::plan(loader.config, loader.plan.limits, budget)?;
    loop {
        match loader.caches(devices, limits.num_blocks) {
            Ok(caches) => {
                let least = executor.world().agree(limits)?;
                let caches = match least == limits {
                    true => caches,
                    false => {
                        drop(caches);
                        loader.caches(devices, least.num_blocks)?
                    }
                };
                executor.change_caches(caches)?;
                return Ok(least);
            }
            Err(Error::DoesNotFit { .. }) if loader.config.kv_cache_memory_bytes.is_none() => {
                // What is free is not always free in one piece.
                limits = capacity::smaller(loader.config, limits)?;
            }
            Err(error) => return Err(error),
        }
    }
}

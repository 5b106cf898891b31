//! Division of devices among engines and their ranks, from configuration, model and memory alone.
//!
//! Several engines that each hold the whole model (data parallelism) compute without a word to each other, while ranks that share a
//! model (tensor parallelism) wait for each other in every layer. So by default an engine has as few devices as the model and a
//! useful cache fit in, and there are as many engines as that leaves devices for.

use crate::device::platform::{Installed, Platform};
use crate::error::Error;
use flashjob_config::EngineConfig;
use flashjob_model::{DecoderConfig, Shard, ShardShape};

/// Engines and ranks by the nodes that they are on.
#[derive(Clone, Debug)]
pub struct Parallelism {
    /// Engines that each hold the whole model, on this node.
    pub data_parallel_size: usize,
    /// Nodes that share the model.
    pub num_nodes: usize,
    /// Ranks of an engine on all nodes together.
    pub world_size: usize,
    /// Ranks of an engine on each node.
    pub ranks_per_node: usize,
    /// Part of rank 0, which has most: the last rank has least, perhaps nothing of the vocabulary.
    pub largest: ShardShape,
}

impl Parallelism {
    /// One engine of `world_size` ranks.
    ///
    /// # Errors
    /// [`Error::TensorParallel`] where nodes or heads cannot be divided so.
    pub fn of_ranks(model: &DecoderConfig, world_size: usize, num_nodes: usize) -> Result<Self, Error> {
        if !world_size.is_multiple_of(num_nodes) {
            let reason =
                format!("{num_nodes} machines cannot share its ranks evenly; choose a multiple of {num_nodes}");
            return Err(Error::TensorParallel { asked: world_size, reason });
        }
        let shape = |rank| {
            ShardShape::new(model, Shard { rank, world_size })
                .map_err(|error| Error::TensorParallel { asked: world_size, reason: error.to_string() })
        };
        let (_, largest) = (shape(world_size - 1)?, shape(0)?);
        let ranks_per_node = world_size / num_nodes;
        Ok(Self { data_parallel_size: 1, num_nodes, world_size, ranks_per_node, largest })
    }

    /// As configured. What is not configured takes all devices that `platform` has: with `data-parallel-size` alone each engine has as
    /// many ranks as the model can be split over, with `tensor-parallel-size` alone there are as many engines as there is room for.
    /// With neither, each engine has the fewest ranks that leave room for a useful cache on such devices, as `is_useful` says; all that the
    /// model can be split over where none do. Nodes share one engine.
    ///
    /// # Errors
    /// [`Error::TensorParallel`] where nodes or heads cannot be divided so, [`Error::Setting`] for several engines on several nodes.
    pub fn new(
        platform: &dyn Platform,
        model: &DecoderConfig,
        config: &EngineConfig,
        num_nodes: usize,
        is_useful: &dyn Fn(Self, Installed) -> bool,
    ) -> Result<Self, Error> {
        let asked_ranks = config.tensor_parallel_size.map(usize::from);
        let asked_engines = config.data_parallel_size.map(usize::from);
        if let (2.., Some(engines @ 2..)) = (num_nodes, asked_engines) {
            return Err(Error::Setting(format!(
                "data-parallel-size={engines} is for the devices of one machine, but {num_nodes} share the model; leave it out, or give \
                 each machine a part of the prompts (replica-count)"
            )));
        }
        // Asked for only where it decides: the driver starts with the question.
        let installed = || platform.installed();
        let of_ranks = |ranks_per_node: usize| Self::of_ranks(model, ranks_per_node * num_nodes, num_nodes);
        let suiting = |most: usize| (1..=most.max(1)).filter_map(move |ranks| of_ranks(ranks).ok());
        let largest = |most: usize| suiting(most).next_back().map_or_else(|| of_ranks(1), Ok);
        match (asked_ranks, asked_engines) {
            (Some(ranks), engines) => {
                let one = Self::of_ranks(model, ranks, num_nodes)?;
                let room = || if num_nodes > 1 { 1 } else { installed().count / one.ranks_per_node };
                Ok(Self { data_parallel_size: engines.unwrap_or_else(room).max(1), ..one })
            }
            (None, Some(engines)) => Ok(Self { data_parallel_size: engines, ..largest(installed().count / engines)? }),
            (None, None) if num_nodes > 1 => largest(installed().count),
            (None, None) => {
                let devices = installed();
                let smallest = suiting(devices.count).find(|one| is_useful(one.clone(), devices));
                let one = smallest.map_or_else(|| largest(devices.count), Ok)?;
                Ok(Self { data_parallel_size: (devices.count / one.ranks_per_node).max(1), ..one })
            }
        }
    }
}

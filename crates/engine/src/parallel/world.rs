//! All ranks of a model, those of this process among them, and the other nodes where there are any.

use std::ops::Range;
use std::sync::Arc;

use super::nodes::Nodes;
use crate::cost::NodeLoad;
use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use crate::schedule::limits::EngineLimits;
use flashjob_model::Shard;

/// All ranks of a model. Engines beside each other, which are on one node, have equal ones.
#[derive(Clone)]
pub struct World {
    /// Ranks on all nodes together.
    pub size: usize,
    /// Ranks of this process, one behind the other.
    pub here: Range<usize>,
    /// The other nodes; `None` where all ranks are here.
    pub nodes: Option<Arc<dyn Nodes>>,
}

impl World {
    /// The parts of this process's ranks.
    pub fn shards(&self) -> impl Iterator<Item = Shard> + use<> {
        let world_size = self.size;
        self.here.clone().map(move |rank| Shard { rank, world_size })
    }

    /// True where another node leads.
    pub fn follows(&self) -> bool {
        self.nodes.as_ref().is_some_and(|nodes| nodes.follows())
    }

    /// `planned` with the smallest cache of all nodes.
    ///
    /// # Errors
    /// [`Error::Machines`] or [`Error::Ended`]: a node is gone.
    pub fn agree(&self, planned: EngineLimits) -> Result<EngineLimits, Error> {
        self.nodes.as_ref().map_or(Ok(planned), |nodes| nodes.agree(planned))
    }

    /// Tells the leader that this node is ready, or waits until all others are; gives what those have loaded.
    ///
    /// # Errors
    /// [`Error::Machines`] or [`Error::Ended`]: a node is gone.
    pub fn all_loaded(&self, here: &NodeLoad) -> Result<Vec<NodeLoad>, Error> {
        self.nodes.as_ref().map_or_else(|| Ok(Vec::new()), |nodes| nodes.all_loaded(here))
    }

    /// Has all other nodes compute `step`, where this one leads.
    ///
    /// # Errors
    /// [`Error::Machines`] or [`Error::Ended`]: a node is gone.
    pub fn begin(&self, step: &ForwardBatch) -> Result<(), Error> {
        // Sent before this node computes: workers begin as early as the leader does.
        self.nodes.as_ref().map_or(Ok(()), |nodes| nodes.send_step(step))
    }

    /// Replaces the error of `outcome` by that of another node which is gone, its cause.
    pub fn explain<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        let failure = || self.nodes.as_ref().and_then(|nodes| nodes.failure());
        outcome.map_err(|error| failure().unwrap_or(error))
    }
}

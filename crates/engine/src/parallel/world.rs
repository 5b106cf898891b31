//! All ranks of a model, those of this process among them, and the other nodes where there are any.

use std::ops::Range;
use std::time::Instant;

use super::frame::Kind;
use super::links::Links;
use crate::cost::NodeLoad;
use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use crate::schedule::limits::EngineLimits;
use flashjob_model::Shard;

/// All ranks of a model.
pub struct World {
    /// Ranks on all nodes together.
    pub size: usize,
    /// Ranks of this process, one behind the other.
    pub here: Range<usize>,
    /// To other nodes; `None` where all ranks are here.
    pub links: Option<Links>,
}

/// A node's cache, as it is sent over a link.
#[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
struct CacheSize {
    kv_blocks: usize,
    max_model_len: usize,
}

impl World {
    /// The parts of this process's ranks.
    pub fn shards(&self) -> impl Iterator<Item = Shard> + use<> {
        let world_size = self.size;
        self.here.clone().map(move |rank| Shard { rank, world_size })
    }

    /// The smallest cache of all nodes, where that of `planned` is this one's: blocks must mean the same on every rank.
    ///
    /// # Errors
    /// Where one of them is gone.
    pub fn agree(&self, planned: EngineLimits) -> Result<EngineLimits, Error> {
        let own = CacheSize { kv_blocks: planned.num_blocks, max_model_len: planned.max_model_len };
        let least = match &self.links {
            None => own,
            Some(Links::Leader(links)) => {
                let mut least = own;
                for link in links.iter() {
                    let other: CacheSize = link.receive_json(Kind::Capacity, link.deadline())?;
                    least.kv_blocks = least.kv_blocks.min(other.kv_blocks);
                    least.max_model_len = least.max_model_len.min(other.max_model_len);
                }
                links.iter().try_for_each(|link| link.send_json(Kind::Capacity, &least))?;
                least
            }
            Some(Links::Worker(link)) => {
                link.send_json(Kind::Capacity, &own)?;
                let least: CacheSize = link.receive_json(Kind::Capacity, link.deadline())?;
                // A peer's word is not trusted with memory.
                if least.kv_blocks > own.kv_blocks || least.max_model_len > own.max_model_len {
                    let peer = link.peer();
                    return Err(Error::Machines(format!("{peer} wants more cache than there is room for here")));
                }
                least
            }
        };
        Ok(EngineLimits { num_blocks: least.kv_blocks, max_model_len: least.max_model_len, ..planned })
    }

    /// Tells the leader that this node is ready, or waits until all others are; gives what those have loaded.
    ///
    /// # Errors
    /// Where one of them is gone.
    pub fn all_loaded(&self, here: &NodeLoad) -> Result<Vec<NodeLoad>, Error> {
        match &self.links {
            None => Ok(Vec::new()),
            Some(Links::Leader(links)) => {
                let deadline = links.first().map_or_else(Instant::now, |link| link.deadline());
                let loaded = links.iter().map(|link| link.receive_json(Kind::Loaded, deadline));
                Ok(loaded.collect::<Result<_, _>>()?)
            }
            Some(Links::Worker(link)) => {
                link.send_json(Kind::Loaded, here)?;
                Ok(Vec::new())
            }
        }
    }

    /// Has all other nodes compute `batch`, where this one leads.
    ///
    /// # Errors
    /// Where one of them is gone.
    pub fn begin(&self, batch: &ForwardBatch) -> Result<(), Error> {
        let Some(Links::Leader(links)) = &self.links else { return Ok(()) };
        // Sent before this node computes: workers begin as early as the leader does.
        let mut encoded = Vec::new();
        batch.encode(&mut encoded);
        let bytes = bytemuck::cast_slice(&encoded);
        Ok(links.iter().try_for_each(|link| link.send(Kind::Step, &[bytes]))?)
    }

    /// Replaces the error of `outcome` by the link's where another node is gone, which is its cause.
    pub fn explain<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        let failure = || self.links.as_ref().and_then(Links::failure);
        outcome.map_err(|error| failure().map_or(error, Error::from))
    }
}

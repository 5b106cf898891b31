//! All ranks of a model, those of this process among them, and the other machines where there are any.

use std::ops::Range;
use std::time::Instant;

use super::link::Kind;
use super::links::Links;
use crate::cost::NodeLoad;
use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use crate::schedule::limits::EngineLimits;
use flashjob_model::Shard;

/// Who computes a model together.
pub struct World {
    /// Ranks in all.
    pub size: usize,
    /// Those of this process, one behind the other.
    pub here: Range<usize>,
    /// To other machines; `None` where all ranks are here.
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

    /// Tells the leader that this machine is ready, or waits until all others are; gives what those have loaded.
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

    /// Has all other machines compute `step`, where this one leads.
    ///
    /// # Errors
    /// Where one of them is gone.
    pub fn begin(&self, step: &ForwardBatch) -> Result<(), Error> {
        let Some(Links::Leader(links)) = &self.links else { return Ok(()) };
        let mut words = Vec::new();
        step.write(&mut words);
        let bytes = bytemuck::cast_slice(&words);
        Ok(links.iter().try_for_each(|link| link.send(Kind::Step, &[bytes]))?)
    }

    /// What `outcome` is, or the reason behind it where another machine has fallen silent.
    pub fn explain<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        let silence = || self.links.as_ref().and_then(Links::silence);
        outcome.map_err(|error| silence().map_or(error, Error::from))
    }
}

//! The other nodes, each at the end of a link: what the engine asks of them, in frames.

use std::sync::Arc;
use std::time::Instant;

use super::frame::{Kind, LinkError};
use super::link::Link;
use super::watch::Watch;
use super::wire_format;
use flashjob_engine::{EngineLimits, Error, ForwardBatch, NodeLoad, Nodes};

/// Connections to all other nodes that this one talks to.
#[derive(Clone)]
pub enum Links {
    /// From the leader to each other, in order.
    Leader(Arc<[Arc<Link>]>),
    /// From another node to the leader.
    Worker(Arc<Link>),
}

/// A node's cache, as it is sent over a link.
#[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
struct CacheSize {
    kv_blocks: usize,
    max_model_len: usize,
}

impl Links {
    /// All of them, in order.
    pub fn all(&self) -> &[Arc<Link>] {
        match self {
            Links::Leader(links) => links,
            Links::Worker(link) => std::slice::from_ref(link),
        }
    }

    /// The links to workers; none on a worker.
    fn workers(&self) -> &[Arc<Link>] {
        match self {
            Links::Leader(links) => links,
            Links::Worker(_) => &[],
        }
    }

    /// The link to the leader.
    fn leader(&self) -> Result<&Link, Error> {
        match self {
            Links::Worker(leader) => Ok(leader),
            Links::Leader(_) => Err(Error::Machines("the leader follows no other node".to_owned())),
        }
    }

    fn agree_on_cache(&self, own: CacheSize) -> Result<CacheSize, Error> {
        match self {
            Links::Leader(links) => {
                let mut least = own;
                for link in links.iter() {
                    let other: CacheSize = link.receive_json(Kind::Capacity, link.deadline())?;
                    least.kv_blocks = least.kv_blocks.min(other.kv_blocks);
                    least.max_model_len = least.max_model_len.min(other.max_model_len);
                }
                links.iter().try_for_each(|link| link.send_json(Kind::Capacity, &least))?;
                Ok(least)
            }
            Links::Worker(link) => {
                link.send_json(Kind::Capacity, &own)?;
                let least: CacheSize = link.receive_json(Kind::Capacity, link.deadline())?;
                // A peer's word is not trusted with memory.
                if least.kv_blocks > own.kv_blocks || least.max_model_len > own.max_model_len {
                    let peer = link.peer();
                    return Err(Error::Machines(format!("{peer} wants more cache than there is room for here")));
                }
                Ok(least)
            }
        }
    }
}

impl Nodes for Links {
    fn follows(&self) -> bool {
        matches!(self, Links::Worker(_))
    }

    fn agree(&self, planned: EngineLimits) -> Result<EngineLimits, Error> {
        let own = CacheSize { kv_blocks: planned.num_blocks, max_model_len: planned.max_model_len };
        let least = self.agree_on_cache(own)?;
        Ok(EngineLimits { num_blocks: least.kv_blocks, max_model_len: least.max_model_len, ..planned })
    }

    fn all_loaded(&self, here: &NodeLoad) -> Result<Vec<NodeLoad>, Error> {
        match self {
            Links::Leader(links) => {
                let deadline = links.first().map_or_else(Instant::now, |link| link.deadline());
                let loaded = links.iter().map(|link| link.receive_json(Kind::Loaded, deadline));
                Ok(loaded.collect::<Result<_, _>>()?)
            }
            Links::Worker(link) => {
                link.send_json(Kind::Loaded, here)?;
                Ok(Vec::new())
            }
        }
    }

    fn send_step(&self, step: &ForwardBatch) -> Result<(), Error> {
        let mut encoded = Vec::new();
        if !self.workers().is_empty() {
            wire_format::encode(step, &mut encoded);
        }
        let bytes = bytemuck::cast_slice(&encoded);
        Ok(self.workers().iter().try_for_each(|link| link.send(Kind::Step, &[bytes]))?)
    }

    fn receive_step(&self, step: &mut ForwardBatch, limits: &EngineLimits) -> Result<(), Error> {
        let leader = self.leader()?;
        let encoded = leader.receive_u32s(Kind::Step, wire_format::max_len(limits))?;
        wire_format::decode(&encoded, limits, step)
            .map_err(|reason| Error::Machines(format!("{} asks for a step that is none: {reason}", leader.peer())))
    }

    fn receive_parts(&self, node_rank: usize, parts: &mut [&mut [f32]]) -> Result<(), Error> {
        let link = node_rank.checked_sub(1).and_then(|index| self.workers().get(index));
        let link = link.ok_or_else(|| Error::Machines(format!("there is no link to node {node_rank}")))?;
        Ok(link.receive(Kind::Parts, parts.iter_mut().map(|part| &mut **part))?)
    }

    fn send_parts(&self, parts: &[&[f32]]) -> Result<(), Error> {
        let pieces: Vec<&[u8]> = parts.iter().map(|part| bytemuck::cast_slice(part)).collect();
        Ok(self.leader()?.send(Kind::Parts, &pieces)?)
    }

    fn send_sum(&self, sum: &[f32]) -> Result<(), Error> {
        let bytes = bytemuck::cast_slice(sum);
        Ok(self.workers().iter().try_for_each(|link| link.send(Kind::Sum, &[bytes]))?)
    }

    fn receive_sum(&self, sum: &mut [f32]) -> Result<(), Error> {
        Ok(self.leader()?.receive(Kind::Sum, std::iter::once(sum))?)
    }

    fn broadcast_id(&self, id: &mut [u8]) -> Result<(), Error> {
        match self {
            Links::Leader(links) => links.iter().try_for_each(|link| link.send(Kind::UniqueId, &[id]))?,
            Links::Worker(leader) => leader.receive(Kind::UniqueId, std::iter::once(id))?,
        }
        Ok(())
    }

    fn failure(&self) -> Option<Error> {
        self.all().iter().find_map(|link| link.failure().cloned()).map(Error::from)
    }

    fn watch(&self, lost: Box<dyn FnOnce() + Send>) -> Box<dyn Send + Sync> {
        Box::new(Watch::start(self.clone(), lost))
    }
}

impl From<LinkError> for Error {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Cancelled => Error::Cancelled,
            LinkError::Ended { peer, end } => Error::Ended { peer, end },
            LinkError::Broken(sentence) => Error::Machines(sentence),
        }
    }
}

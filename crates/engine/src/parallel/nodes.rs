//! Other nodes that share the model, as the engine sees them: interfaces that the package `flashjob-cluster` implements.
//!
//! One node leads: it schedules, and hands each step to the others. All ranks of all nodes are one group, whose sums and parts of
//! logits pass through the leader where ranks are on CPUs. How nodes are connected is not known here.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cost::NodeLoad;
use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use crate::schedule::limits::EngineLimits;
use flashjob_model::Model;

/// Settings by name that all nodes must have alike.
pub type NodeSettings = BTreeMap<&'static str, String>;

/// Finds the nodes that share a model (torch's term for the part of a launcher that does so).
pub trait RendezvousHandler: Sync {
    /// Number of nodes, this one included.
    fn num_nodes(&self) -> usize;

    /// Rank of this node among them; 0 leads.
    fn node_rank(&self) -> usize;

    /// Waits until all nodes have come and mean the same job: `model`, and equal `settings`.
    ///
    /// # Errors
    /// [`Error::Setting`] where they do not mean the same job, [`Error::Machines`] where not all of them come,
    /// [`Error::Cancelled`].
    fn rendezvous(&self, model: &Model, settings: &NodeSettings) -> Result<Arc<dyn Nodes>, Error>;
}

/// All other nodes, once they have met. Every method fails with [`Error::Machines`] or [`Error::Ended`] where one of them is
/// gone, and with [`Error::Cancelled`] where this process is to stop.
pub trait Nodes: Send + Sync {
    /// True where another node leads.
    fn follows(&self) -> bool;

    /// `planned` with the smallest cache of all nodes: a block must exist on every rank.
    ///
    /// # Errors
    /// As said of all methods.
    fn agree(&self, planned: EngineLimits) -> Result<EngineLimits, Error>;

    /// Tells the leader what was loaded here, or waits until all others are ready and gives what those have loaded.
    ///
    /// # Errors
    /// As said of all methods.
    fn all_loaded(&self, here: &NodeLoad) -> Result<Vec<NodeLoad>, Error>;

    /// Has all others compute `step`, at the leader; nothing elsewhere.
    ///
    /// # Errors
    /// As said of all methods.
    fn send_step(&self, step: &ForwardBatch) -> Result<(), Error>;

    /// Makes `step` the next one that the leader computes, once it is seen to be within `limits`.
    ///
    /// # Errors
    /// As said of all methods.
    fn receive_step(&self, step: &mut ForwardBatch, limits: &EngineLimits) -> Result<(), Error>;

    /// At the leader: takes in the parts of all ranks of the node with this rank, in their order.
    ///
    /// # Errors
    /// As said of all methods.
    fn receive_parts(&self, node_rank: usize, parts: &mut [&mut [f32]]) -> Result<(), Error>;

    /// Elsewhere: sends the parts of all ranks of this node to the leader.
    ///
    /// # Errors
    /// As said of all methods.
    fn send_parts(&self, parts: &[&[f32]]) -> Result<(), Error>;

    /// Sends a sum over all ranks to all others, at the leader; nothing elsewhere.
    ///
    /// # Errors
    /// As said of all methods.
    fn send_sum(&self, sum: &[f32]) -> Result<(), Error>;

    /// Elsewhere: takes in a sum over all ranks.
    ///
    /// # Errors
    /// As said of all methods.
    fn receive_sum(&self, sum: &mut [f32]) -> Result<(), Error>;

    /// Overwrites `id` with the leader's, by which ranks on devices find each other (NCCL's unique id).
    ///
    /// # Errors
    /// As said of all methods.
    fn broadcast_id(&self, id: &mut [u8]) -> Result<(), Error>;

    /// The first failure of a connection, if there was one: the cause of whatever fails after it.
    fn failure(&self) -> Option<Error>;

    /// Calls `lost` once, from a thread of its own, when a node is gone: for ranks whose sums do not pass through these
    /// connections. Dropping the result ends that.
    fn watch(&self, lost: Box<dyn FnOnce() + Send>) -> Box<dyn Send + Sync>;
}

//! This node among several that share one model. It does not know how nodes talk to each other.

use std::num::NonZeroUsize;
use std::time::Duration;

/// This node among those that share the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodesConfig {
    /// Name or IP address of the leader, the node of rank 0.
    pub leader: String,
    /// Port of the leader.
    pub port: u16,
    /// Rank of this node, below `num_nodes`.
    pub node_rank: usize,
    /// Number of nodes, at least 2.
    pub num_nodes: NonZeroUsize,
    /// Longest wait of one node for another.
    pub timeout: Duration,
}

impl NodesConfig {
    /// Returns whether this node is a worker: another one leads.
    pub fn is_worker(&self) -> bool {
        self.node_rank > 0
    }
}

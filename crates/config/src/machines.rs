//! The index of this process among several nodes that share one model.

use std::num::NonZeroUsize;
use std::time::Duration;

/// This machine among those that share the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machines {
    /// Name or IP address of machine 0.
    pub leader: String,
    /// Port of the leader.
    pub port: u16,
    /// Index of this node, below `count`.
    pub index: usize,
    /// Number of nodes, at least 2.
    pub count: NonZeroUsize,
    /// Timeout for waits between nodes.
    pub patience: Duration,
}

impl Machines {
    /// Returns whether another node leads.
    pub fn follows(&self) -> bool {
        self.index > 0
    }
}

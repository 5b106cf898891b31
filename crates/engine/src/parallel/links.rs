//! All links of this node to the others that it talks to.

use std::sync::Arc;

use super::frame::LinkError;
use super::link::Link;

/// Connections to all other nodes that this one talks to.
#[derive(Clone)]
pub enum Links {
    /// From the leader to each other, in order.
    Leader(Arc<[Arc<Link>]>),
    /// From another node to the leader.
    Worker(Arc<Link>),
}

impl Links {
    /// The first failure of a link, if there was one.
    pub fn failure(&self) -> Option<LinkError> {
        self.all().iter().find_map(|link| link.failure().cloned())
    }

    pub fn all(&self) -> &[Arc<Link>] {
        match self {
            Links::Leader(links) => links,
            Links::Worker(link) => std::slice::from_ref(link),
        }
    }
}

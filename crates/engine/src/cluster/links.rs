//! All links of this node to the others that it talks to.

use std::sync::Arc;

use super::link::{Link, LinkError};

/// Connections to all other machines that this one talks to.
#[derive(Clone)]
pub enum Links {
    /// From machine 0 to each other, in order.
    Leader(Arc<[Arc<Link>]>),
    /// From another machine to machine 0.
    Worker(Arc<Link>),
}

impl Links {
    /// Why one of them fell silent, if one has.
    pub fn silence(&self) -> Option<LinkError> {
        self.all().iter().find_map(|link| link.silence().cloned())
    }

    pub fn all(&self) -> &[Arc<Link>] {
        match self {
            Links::Leader(links) => links,
            Links::Worker(link) => std::slice::from_ref(link),
        }
    }
}

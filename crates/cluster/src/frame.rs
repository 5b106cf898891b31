//! Kinds of frames between nodes, and the ways in which a link ends.

use flashjob_engine::End;

/// Kind of a frame. Its tag is readable in a capture of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A worker says who it is and what it means to compute.
    Hello,
    /// Size of the cache, of one node or agreed for all.
    Capacity,
    /// A worker has loaded its part.
    Loaded,
    /// NCCL's unique id, by which ranks find each other.
    UniqueId,
    /// A step to compute.
    Step,
    /// Parts of a node's ranks for a sum or a gather.
    Parts,
    /// The sum over all ranks.
    Sum,
    /// Exit code and reason: nothing follows.
    End,
}

impl Kind {
    /// The first bytes of a frame of this kind.
    pub fn tag(self) -> [u8; 4] {
        *match self {
            Kind::Hello => b"HELO",
            Kind::Capacity => b"CAPA",
            Kind::Loaded => b"LOAD",
            Kind::UniqueId => b"UNIQ",
            Kind::Step => b"STEP",
            Kind::Parts => b"PART",
            Kind::Sum => b"SUM ",
            Kind::End => b"END ",
        }
    }
}

/// Failure of a link; every later use of it gives the first one again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// This process was told to stop.
    #[error("the engine was cancelled")]
    Cancelled,
    /// The peer has said its last word.
    #[error("{peer} ended: {}", if .end.code == 0 { "its work is done" } else { .end.sentence.as_str() })]
    Ended {
        /// Name of the peer.
        peer: String,
        /// Exit code and reason.
        end: End,
    },
    /// One sentence on the connection.
    #[error("{0}")]
    Broken(String),
}

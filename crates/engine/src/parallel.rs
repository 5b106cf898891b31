//! Ranks that share one model: their collectives, and the nodes that they are on.
//!
//! `executor` runs a step on all ranks of this process and `communicator` is one rank's interface to the others. Nodes find each
//! other in `rendezvous` and talk over a `link`; `worker` computes what the leader schedules.

pub mod communicator;
pub mod connect;
pub mod executor;
pub mod frame;
pub mod handshake;
mod host_communicator;
pub mod link;
pub mod links;
pub mod rendezvous;
#[cfg(feature = "cuda")]
pub mod watch;
pub mod worker;
pub mod world;

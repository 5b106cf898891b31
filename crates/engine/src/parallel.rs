//! Ranks that share one model (tensor parallelism): their collectives, and the nodes that they are on.
//!
//! `executor` runs a step on all ranks of this process, `communicator` is one rank's interface to the others, and
//! `host_communicator` implements it for threads that share memory. Other nodes stand behind `nodes`.

pub mod communicator;
pub mod executor;
pub mod host_communicator;
pub mod nodes;
pub mod world;

//! Several nodes that share one model: how they find each other, and what travels between them.
//!
//! Implements the engine's interfaces to other nodes, [`flashjob_engine::RendezvousHandler`] and [`flashjob_engine::Nodes`], over
//! TCP. The leader schedules and sends each step as words (`wire_format`); sums of ranks on CPUs come back to it and go out
//! again. Nothing here knows of scheduling, layers or devices.

mod connection;
mod frame;
mod handshake;
mod link;
mod links;
mod rendezvous;
mod watch;
mod wire_format;
mod worker;

pub use rendezvous::Rendezvous;
pub use worker::Worker;

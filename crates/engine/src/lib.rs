//! A model and requests become tokens: paged KV cache, continuous batching, chunked prefill, one decoder.
//!
//! The engine states facts through [`flashjob_event`]; it knows nothing of MLflow, Prometheus, HTTP, or clocks
//! that are shown to people.
//!
//! Folders are stages:
//!
//! - `start`: from configuration and model to a loaded [`Engine`]: memory, devices, weights.
//! - `schedule`: requests, and the tokens and blocks of each step.
//! - `forward`: one step, from token ids to logits and from logits to tokens.
//! - `parallel`: ranks, their collectives, and the nodes that they are on.
//! - `cuda`: a GPU behind the operations of `forward`.
//!
//! `run` ties them together: requests become steps until each has its tokens. Files import each other without cycles, and
//! name the file that defines an item, not its folder (`tests/layout/cycles.rs` holds both).

mod cost;
#[cfg(feature = "cuda")]
mod cuda;
mod engine;
mod error;
mod forward;
mod parallel;
mod report;
mod run;
mod schedule;
mod start;

pub use cost::{Cost, NodeLoad};
#[cfg(feature = "cuda")]
pub use cuda::driver::{gpu_identifiers, visible_gpus};
pub use engine::{Engine, LogitsWatcher};
pub use error::{End, Error};
pub use forward::batch::{ForwardBatch, LogitsRows};
pub use forward::replay::ReplaySize;
pub use parallel::nodes::{NodeSettings, Nodes, RendezvousHandler};
pub use report::EngineFacts;
pub use schedule::limits::EngineLimits;
pub use schedule::request::{NotFinite, Output, Request};
pub use start::instructions::instructions;
pub use start::platform::Platform;

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
//!
//! And what a step runs on:
//!
//! - `device`: the interface to a rank's device, and to a kind of devices.
//! - `cpu`: processors behind that interface. GPUs are in the package `flashjob-cuda`.
//! - `parallel`: ranks and their collectives. Other nodes are in the package `flashjob-cluster`.
//!
//! `run` ties them together: requests become steps until each has its tokens. `data_parallel` has several engines serve one queue, and
//! `timing` times steps of a given size. Files import each other without cycles, and
//! name the file that defines an item, not its folder (`tests/layout/cycles.rs` holds both).

mod cost;
mod cpu;
mod data_parallel;
mod device;
mod engine;
mod error;
mod forward;
mod parallel;
mod report;
mod run;
mod schedule;
mod start;
mod timing;

pub use cost::{Cost, NodeLoad};
pub use cpu::platform::Cpu;
pub use data_parallel::Engines;
pub use device::operation::{Operation, OperationTime};
pub use device::ops::{
    AddRmsNorm, Attention, AttentionSettings, Embed, Gated, GatherRows, LayerCache, MaskLogits, NormHeads,
    RopeAndCache, Sample, Turn,
};
pub use device::platform::{Determinism, DeviceHandles, Installed, NodeDevices, Platform};
pub use device::{Device, Linear, MatrixBuilder, RotaryEmbedding};
pub use engine::{Engine, LogitsWatcher};
pub use error::{End, Error};
pub use flashjob_cpu::TokenLogprobs;
pub use forward::batch::{CHOSEN_BEFORE, ForwardBatch, LogitsRows};
pub use forward::kv_cache::CacheOrder;
pub use forward::masks::TokenMasks;
pub use forward::replay::ReplaySize;
pub use forward::sampling::SamplingKey;
pub use parallel::communicator::{Communicator, Connected, Group};
pub use parallel::nodes::{NodeSettings, Nodes, RendezvousHandler};
pub use parallel::world::World;
pub use report::CandleReport;
pub use schedule::constraint::{ConstrainedText, Constraint};
pub use schedule::limits::EngineLimits;
pub use schedule::queue::{Dispatch, Levels, RequestQueue, Seat};
pub use schedule::request::{NotFinite, Output, Refused, Request, RequestError, Unconstrained};
pub use schedule::request_order::{Orderable, WaitingRequests};
pub use schedule::stop_texts::StopTexts;
pub use start::instructions::instructions;
pub use start::roofline::CpuNodes;
pub use timing::{OperationTimes, StepSize, StepTimes};

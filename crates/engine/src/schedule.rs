//! Requests, and the tokens and blocks of each step.
//!
//! `scheduler` owns the sequences and fills a step with their tokens, `blocks` is the memory that it divides among them, and
//! `limits` says how large a step may be. Nothing here knows tensors or devices.

pub mod blocks;
pub mod limits;
pub mod request;
pub mod scheduler;
pub mod scheduler_output;
pub mod sequence;

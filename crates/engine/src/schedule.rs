//! Requests, and the tokens and blocks of each step.
//!
//! `scheduler` fills a step with tokens of running sequences, `blocks` is the memory that it divides among them. Nothing here
//! knows tensors or devices.

pub mod blocks;
pub mod limits;
pub mod request;
pub mod scheduler;
pub mod sequence;

//! One GPU: its stream, this engine's kernels on it, and what they are launched with.
//!
//! Addresses and shapes go in, work is queued, nothing is waited for. The operations name the tensors; this folder does not know
//! what a forward pass is made of.

pub mod address;
pub mod attention;
pub mod driver;
pub mod gpu;
pub mod graph;
mod kernels;
pub mod launch;
pub mod matrix;
pub mod nccl;
mod pinned;
pub mod product;
mod roofline;
pub mod split_kv;
mod staging;
pub mod step_mirror;
mod upload;

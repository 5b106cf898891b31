//! NVIDIA's GPUs as devices of the engine: one GPU a rank.
//!
//! `platform` opens them, `device` has the operations of a forward pass, `linear` products with weights, and `nccl` the ranks'
//! collectives. Below are addresses and shapes: work is queued on a GPU's stream (`gpu`), and nothing is waited for. `nvml` watches
//! the GPUs of a job. What a forward pass is made of is not known here.
//!
//! Without the feature `cuda`, which needs an NVIDIA toolchain, this package is empty.
#![cfg(feature = "cuda")]

mod address;
mod attention;
mod device;
mod driver;
mod gpu;
mod graph;
mod kernels;
mod launch;
mod linear;
mod nccl;
mod nvml;
mod pinned;
mod platform;
mod product;
mod roofline;
mod split_kv;
mod split_kv_buffers;
mod staging;
mod step_mirror;
mod upload;

pub use driver::visible_gpus;
pub use nvml::watch_gpus;
pub use platform::Cuda;
pub use split_kv::SplitKv;

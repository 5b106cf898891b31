//! NVIDIA's GPUs as devices of the engine: one GPU a rank.
//!
//! `platform` opens them, `device` has the operations of a forward pass, `linear` products with weights, and `nccl` the ranks'
//! collectives. Below are slices of memory and shapes: work is queued on a GPU's stream (`gpu`), and nothing is waited for. `nvml` watches
//! the GPUs of a job, and `nvtx` shows profilers what goes on. What a forward pass is made of is not known here.
//!
//! Without the feature `cuda`, which needs an NVIDIA toolchain, this package is empty.
#![cfg(feature = "cuda")]

mod attention;
mod device;
mod device_slice;
mod driver;
mod gpu;
mod graph;
mod kernels;
mod known_answer;
mod known_sum;
mod launch;
mod linear;
mod mask_upload;
mod nccl;
mod nvml;
mod nvtx;
mod operation_clock;
mod pinned;
mod platform;
mod product;
mod recording;
mod roofline;
mod row_tiles;
mod run_mha;
mod sampling_lists;
mod split_kv;
mod split_kv_buffers;
mod staging;
mod step_mirror;
mod upload;

pub use driver::{check_gpus, visible_gpus};
pub use nvml::watch_gpus;
pub use nvtx::show_phase;
pub use platform::Cuda;
pub use split_kv::{SplitKv, parts_at_a_time};

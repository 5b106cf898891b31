//! One forward pass: a batch of token ids becomes logits, and logits become tokens.
//!
//! `batch` is the input of a pass and `decoder` computes it, through three interfaces behind which devices and ranks differ:
//! `attention`, `linear` and the communicator of `cluster`. `sampler` turns logits into tokens.

pub mod attention;
pub mod batch;
pub mod decoder;
pub mod device;
pub mod kv_cache;
pub mod linear;
pub mod ops;
pub mod replay;
pub mod rope;
pub mod sampler;
pub mod sampling;
#[cfg(any(feature = "cuda", test))]
pub mod split_kv;
pub mod weights;
pub mod workspace;

//! One forward pass: a batch of token ids becomes logits, and logits become tokens.
//!
//! `batch` is the input of a pass and `decoder` computes it, through two interfaces behind which devices and ranks differ:
//! `device` and the communicator of `parallel`. `sampler` turns logits into tokens.

pub mod batch;
pub mod decoder;
pub mod kv_cache;
pub mod replay;
pub mod rope;
pub mod sampler;
pub mod sampling;
pub mod weights;
pub mod workspace;

//! One forward pass: a batch of token ids becomes logits, and logits become tokens.
//!
//! `batch` is the input of a pass and `decoder` computes it, through two interfaces behind which devices and ranks differ:
//! `device` and the communicator of `parallel`. `sampling` says how the device turns logits into tokens, and `masks`
//! which ones it may.

pub mod batch;
pub mod decoder;
pub mod kv_cache;
pub mod masks;
pub mod replay;
pub mod rope;
pub mod sampling;
pub mod weights;
pub mod workspace;

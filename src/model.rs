//! A model directory (or GGUF file) becomes a [`DecoderConfig`], a tokenizer, and tensors of one rank's shard.
//!
//! This room reads headers first and weights by range, and knows every spelling that checkpoints have for the
//! same thing. It knows nothing of scheduling, batching or devices: tensors come out on the CPU.

mod decoder_config;
pub mod families;

pub use decoder_config::{Activation, DecoderConfig, RopeConfig, RopeScaling};

//! From configuration and model to a loaded engine.
//!
//! `loader` runs the phases in order: `capacity` divides memory, `platform` opens devices, `parts` loads rank by rank with
//! `loading`, and `profile` measures on GPUs how much is left for the KV cache.

pub mod capacity;
pub mod host_memory;
pub mod instructions;
pub mod load;
pub mod loader;
pub mod open;
pub mod plan;
pub mod platform;
pub mod profile;
pub mod roofline;
pub mod weights;

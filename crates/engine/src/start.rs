//! From configuration and model to a loaded engine.
//!
//! `loader` runs the phases in order: `plan` decides what needs no device, a platform opens devices, `capacity` divides their memory,
//! `load` loads rank by rank with `weights`, and `profile` measures on some platforms how much is left for the KV cache.

pub mod capacity;
pub mod instructions;
pub mod load;
pub mod loader;
pub mod plan;
pub mod profile;
pub mod roofline;
pub mod weights;

//! From configuration and model to a loaded engine.
//!
//! `loader` runs the phases in order: `parallelism` divides devices among engines, a platform opens them, `plan` decides what their
//! memory and the settings decide, with `step_size` for the size of a step, `capacity` divides the memory, `load` loads rank by rank with
//! `weights`, and `profile` measures on some platforms how much is left for the KV cache.

pub mod capacity;
pub mod formats;
pub mod instructions;
pub mod load;
pub mod loader;
pub mod parallelism;
pub mod plan;
pub mod profile;
pub mod roofline;
pub mod step_size;
pub mod weights;

//! Processors as devices: ranks are pools of threads that share the memory of their node.
//!
//! `device` has the operations, each a call of a kernel of [`flashjob_cpu`] on the slices behind candle's tensors (`access`);
//! `linear` has products with packed weights, and `clock` times them. Nothing is queued: an operation is done when it returns.

pub mod access;
pub mod clock;
pub mod device;
pub mod host_memory;
pub mod linear;
pub mod platform;

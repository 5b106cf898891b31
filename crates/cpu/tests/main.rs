//! Kernels from outside.

mod kernels;

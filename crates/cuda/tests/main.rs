//! The GPU path without a GPU.

mod cuda;

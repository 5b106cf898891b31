//! What several behaviours need: servers started once, temporary folders, the built binaries.

pub mod allocations;
pub mod bucket_server;
pub mod mlflow_server;
pub mod process;
pub mod prometheus;
pub mod real_files;
pub mod venv;
pub mod workplace;

//! Tests by behaviour, from outside where possible: the built binary, real servers, real files.
//!
//! One binary, so that servers start once and the linker runs once.

mod support;

mod bucket;
mod config;
mod container;
mod cuda;
mod deploy;
mod engine;
mod fuzzing;
mod hostile;
mod job;
mod kernels;
mod kubernetes;
mod layout;
mod mlflow;
mod model;
mod mount;
mod telemetry;

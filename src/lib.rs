//! `flashjob`: offline LLM inference as a job.
//!
//! One process reads its configuration, mounts a model bucket, runs inference, shows metrics while it
//! works, records the result and exits with a code that a job controller understands. Each module here
//! is a room with one task; `ARCHITECTURE.md` has the map, and `tests/layout.rs` holds the rule that
//! imports between rooms run one way only: [`job`] alone sees all of them.

pub mod backend;
pub mod bench;
pub mod bucket;
pub mod cgroup;
pub mod config;
pub mod deploy;
pub mod engine;
pub mod event;
pub mod gpus;
pub mod job;
pub mod kernels;
pub mod mlflow;
pub mod model;
pub mod mount;
pub mod report;
pub mod retry_after;
pub mod telemetry;

//! `flashjob`: offline LLM inference as a job.
//!
//! One process reads its configuration, mounts a model bucket, runs inference, shows metrics while it
//! works, records the result and exits with a code that a job controller understands. The packages under
//! `crates/` do one task each; the modules here are the rooms that put them together. `ARCHITECTURE.md` has
//! the map, and `tests/layout.rs` holds the rule that imports between rooms run one way only: [`job`] alone
//! sees all of them.

pub mod backend;
pub mod bench;
pub mod job;
pub mod prepare;
pub mod report;

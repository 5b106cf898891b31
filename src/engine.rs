//! A model and requests become tokens: paged KV cache, continuous batching, chunked prefill, one decoder.
//!
//! The engine states facts through [`crate::event`]; it knows nothing of MLflow, Prometheus, HTTP, or clocks
//! that are shown to people.

mod blocks;
mod error;
mod memory;
mod request;
mod sampling;
mod scheduler;
mod step;

pub use error::Error;
pub use request::{Output, Request};

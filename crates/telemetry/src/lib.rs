//! Events and host samples become Prometheus text, log lines and a progress bar.
//!
//! Everything shown is derived from [`flashjob_event`] and from samples of the machine; the crate knows
//! nothing of engines, models or buckets. [`Registry`] and [`FactLog`] observe, [`Server`] answers
//! scrapes and probes and shows people the run as it goes on ([`Live`]), [`Sampler`] reads the machine, [`Progress`] draws, [`logs`] writes lines.

mod batch_progress;
mod fact_log;
pub mod host;
mod live;
pub mod logs;
mod progress;
mod registry;
mod sampler;
mod server;
mod ticker;

pub use batch_progress::BatchProgress;
pub use fact_log::FactLog;
pub use live::Live;
pub use progress::{Expected, Progress};
pub use registry::{Counts, Registry, Totals};
pub use sampler::Sampler;
pub use server::{LingerEnd, Server, ServerError};

//! Runs, params, metrics and artifacts become MLflow REST calls, with a spool on disk for when the server is away.
//!
//! Tracking never slows a run and never loses it: everything goes to the spool first, a thread of its own
//! sends it from there, and [`publish`](publish()) sends later what could not be sent in time. This room does not know
//! what a run measures: names and values are handed to it.

mod publish;
mod run;
mod tracker;

pub use publish::{Access, Outcome, Published, publish};
pub use run::{Delivery, RunEnd, RunKey, RunLink, RunSpec, RunStatus};
pub use tracker::Tracker;

/// Why something could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spool could not be read or written.
    #[error("{action} {path}: {source}", path = path.display())]
    Spool {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: std::path::PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

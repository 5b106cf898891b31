//! Runs, params, metrics and artifacts become MLflow REST calls, with a spool on disk for when the server is away.
//!
//! Tracking never slows a run and never loses it: everything goes to the spool first, a thread of its own
//! sends it from there, and [`publish`](publish()) sends later what could not be sent in time. This room does not know
//! what a run measures: names and values are handed to it.

mod batch;
mod client;
mod error;
mod names;
mod publish;
mod queue;
mod record;
mod retry;
mod run;
mod sender;
mod spool;
mod tracker;

use std::time::Duration;

pub use client::Client;
pub use error::{Error, Failure};
pub use publish::{Access, Outcome, Published, publish};
pub use run::{Delivery, RunEnd, RunKey, RunLink, RunSpec, RunStatus};
pub use tracker::Tracker;

use crate::config::Tracking;

/// Asks the server, within `limit` and without changing anything there, whether a run could be recorded.
///
/// # Errors
/// What stands in the way: settings, network, permission, a deleted experiment.
pub async fn check(tracking: &Tracking, limit: Duration) -> Result<(), Error> {
    let client = Client::open(tracking)?;
    let deadline = tokio::time::Instant::now() + limit;
    retry::until(deadline, client.server(), async || client.find_experiment(&tracking.experiment).await).await?;
    Ok(())
}

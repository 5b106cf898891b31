//! Runs, params, metrics and artifacts become MLflow REST calls, with a spool on disk for when the server is away.
//!
//! Tracking never slows a run and never loses it: everything goes to the spool first, a thread of its own
//! sends it from there, and [`publish`](publish()) sends later what could not be sent in time. This crate does not know
//! what a run measures: it receives names and values.

mod batch;
mod body;
mod client;
mod error;
mod group;
mod names;
mod publish;
mod queue;
mod record;
mod retry;
mod run;
mod sender;
mod spool;
mod stored_runs;
mod tracker;

use std::time::Duration;

pub use client::Client;
pub use error::{Error, Failure};
pub use group::{Aggregation, Figures, FinishedReplica, Membership, Settled};
pub use publish::{Access, Outcome, Published, publish};
pub use run::{Delivery, RunEnd, RunKey, RunLink, RunSpec, RunStatus};
pub use stored_runs::{StoredRun, StoredRuns};
pub use tracker::Tracker;

use flashjob_config::Tracking;

/// Updates the job of `member` on the server, within `limit`: one parent above all its runs, ended when all have ended,
/// with the aggregate once every replica has finished.
pub async fn settle(
    tracking: &Tracking,
    member: &Membership,
    aggregation: &Aggregation<'_>,
    limit: Duration,
) -> Result<Settled, Error> {
    let client = Client::open(tracking)?;
    let deadline = tokio::time::Instant::now() + limit;
    let now_ms = record::milliseconds(std::time::SystemTime::now());
    retry::until(deadline, client.server(), async || {
        let experiment = client.experiment(&tracking.experiment).await?.experiment_id;
        group::settle(&client, &experiment, member, now_ms, aggregation).await
    })
    .await
}

/// Checks within `limit`, without any change on the server, that a run could be recorded.
pub async fn check(tracking: &Tracking, limit: Duration) -> Result<(), Error> {
    let client = Client::open(tracking)?;
    let deadline = tokio::time::Instant::now() + limit;
    retry::until(deadline, client.server(), async || client.find_experiment(&tracking.experiment).await).await?;
    Ok(())
}

//! A job of several replicas, as MLflow sees it: this process's place in it, and the figures of all once all have finished.

use std::time::Duration;

use flashjob_config::{JobConfig, Tracking};
use flashjob_mlflow::{self as mlflow, Aggregation, FinishedReplica, Membership, RunKey, Settled};

use crate::report::{self, ReplicaFigures, ReplicaResult};

/// The place of this process's run among those of its job; `None` where no job is known.
pub fn membership(job: &JobConfig) -> Option<Membership> {
    let uid = job.replica.job_uid.clone()?;
    let given = job.tracking.as_ref().and_then(|tracking| tracking.run_name.clone());
    let share = job.replica.share;
    Some(Membership {
        parent_name: given.unwrap_or_else(|| format!("job {uid}")),
        // `config` lets nothing else through.
        job: RunKey::try_from(uid).ok()?,
        index: share.index(),
        count: share.count(),
    })
}

/// Brings the job that `member` is a part of up to date, within `limit`, and says in the log how it stands.
///
/// # Errors
/// Errors of MLflow; `flashjob publish` tries again later.
pub async fn settle(tracking: &Tracking, member: &Membership, limit: Duration) -> Result<(), mlflow::Error> {
    // A job of one replica has no parent run.
    if member.count == 1 {
        return Ok(());
    }
    let aggregation = Aggregation { files: &ReplicaResult::FILES, figures: &figures };
    match mlflow::settle(tracking, member, &aggregation, limit).await? {
        Settled::Unfinished { finished } => {
            tracing::info!(finished, replicas = member.count, "other replicas have not finished");
        }
        Settled::Aggregated { link, now } => {
            tracing::info!(url = link.run_url, written_now = now, "all replicas have finished");
        }
    }
    Ok(())
}

fn figures(finished: &[FinishedReplica]) -> Result<Vec<(String, f64)>, String> {
    let read = |replica: &FinishedReplica| match replica.files.as_slice() {
        [result, requests] => {
            ReplicaResult::read(result, requests).map_err(|why| format!("replica {}: {why}", replica.index))
        }
        _ => Err(format!("replica {} has not got all of its files", replica.index)),
    };
    let results: Vec<ReplicaResult> = finished.iter().map(read).collect::<Result<_, _>>()?;
    Ok(report::named(&ReplicaFigures::new(&results)))
}

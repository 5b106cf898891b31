//! Runs that belong together: the attempts and replicas of one job, found by the job's uid.
//!
//! Nobody leads. Each member finds the parent run or makes it, and looks again after it has ended: MLflow cannot make a run
//! only once, so two parents made at the same moment are settled later, the same way by whoever looks: the one with the
//! smallest id stays, the others are deleted, and all members are put under the one that stays. The aggregate is written by
//! whoever sees that every replica has finished. Two who see it at once write the same points, which MLflow keeps once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::batch::{Batcher, run_name};
use super::client::{Client, Run};
use super::record::{Finite, Record};
use super::{Error, RunKey, RunLink, RunStatus};

/// The tag that carries the job's uid.
pub(super) const JOB_TAG: &str = "flashjob.job_uid";
/// The tag that carries a member's place.
pub(super) const REPLICA_TAG: &str = "flashjob.replica";
/// MLflow's own tag of a child.
pub(super) const PARENT_TAG: &str = "mlflow.parentRunId";
/// On a parent: the runs that its figures come from. Whoever finds it there writes no other figures.
const AGGREGATE_TAG: &str = "flashjob.aggregate_of";

/// Files of all replicas, which are in memory together: those of a million requests.
const MOST_FILE_BYTES: usize = 256 << 20;

/// A run's place in a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The job's uid.
    pub job: RunKey,
    /// Which replica.
    pub index: usize,
    /// How many there are. One alone has no parent.
    pub count: usize,
    /// What the parent is called.
    pub parent_name: String,
}

impl Membership {
    fn parent_key(&self) -> RunKey {
        self.job.of_parent()
    }

    /// The tags of the run itself, but for its parent.
    pub(super) fn tags(&self) -> Vec<(&'static str, String)> {
        vec![(JOB_TAG, self.job.to_string()), (REPLICA_TAG, self.index.to_string())]
    }
}

/// A replica that has finished, with the files that an aggregate is made of.
#[derive(Clone, Debug)]
pub struct FinishedReplica {
    /// Which.
    pub index: usize,
    /// The content of each file asked for, in that order.
    pub files: Vec<Vec<u8>>,
}

/// Files of all replicas to figures by name.
pub type Figures = dyn Fn(&[FinishedReplica]) -> Result<Vec<(String, f64)>, String> + Sync;

/// What an aggregate is made of, and how.
pub struct Aggregation<'a> {
    /// Artifacts of each replica's run.
    pub files: &'a [&'a str],
    /// Files to figures; an error is a sentence.
    pub figures: &'a Figures,
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// So many replicas have finished, and others have not.
    Unfinished {
        /// Replicas with a finished run.
        finished: usize,
    },
    /// All have finished, and the parent run has the figures of all.
    Aggregated {
        /// The parent run.
        link: RunLink,
        /// Whether the figures were written just now.
        now: bool,
    },
}

/// Before a member's run is made: earlier attempts that were left running are ended, and the parent is found or made.
pub(super) async fn enter(
    client: &Client,
    experiment: &str,
    member: &Membership,
    own: &RunKey,
    start_time_ms: i64,
) -> Result<Option<Run>, Error> {
    for earlier in members(client, experiment, member).await? {
        let is_other = earlier.key() != Some(own.as_str());
        if earlier.replica() == Some(member.index) && is_other && earlier.started_before(start_time_ms) {
            end_left_behind(client, &earlier, start_time_ms).await?;
        }
    }
    if member.count == 1 {
        return Ok(None);
    }
    let parent = parent(client, experiment, member, start_time_ms).await?;
    if parent.tag(AGGREGATE_TAG).is_none() && !parent.is_running() {
        client.reopen_run(parent.id()).await?;
    }
    Ok(Some(parent))
}

/// An attempt whose process is gone cannot say so itself.
async fn end_left_behind(client: &Client, earlier: &Run, at_ms: i64) -> Result<(), Error> {
    if earlier.is_running() {
        let note = "another attempt began while this one was still open; this is what it had recorded";
        let tag = Record::Tag { tag: "flashjob.end".to_owned(), value: note.to_owned() };
        log(client, earlier.id(), vec![tag]).await?;
        client.end_run(earlier.id(), RunStatus::Killed, at_ms).await?;
    }
    Ok(())
}

/// The parent, made where there is none.
async fn parent(client: &Client, experiment: &str, member: &Membership, start_time_ms: i64) -> Result<Run, Error> {
    let key = member.parent_key();
    if let Some(found) = only_parent(client, experiment, &key).await? {
        return Ok(found);
    }
    let tags = [(JOB_TAG, member.job.to_string()), ("flashjob.replicas", member.count.to_string())];
    client.create_run(experiment, &key, &run_name(&member.parent_name), start_time_ms, &tags).await?;
    // Not the one just made: another may have been made in the meantime, and both makers must choose the same.
    only_parent(client, experiment, &key).await?.ok_or_else(|| client.contradiction("look for the parent run"))
}

/// The parent that stays; the others are deleted.
async fn only_parent(client: &Client, experiment: &str, key: &RunKey) -> Result<Option<Run>, Error> {
    let mut found = client.find_runs(experiment, key).await?.into_iter().filter(|run| !run.is_deleted());
    let first = found.next();
    for other in found {
        client.delete_run(other.id()).await?;
    }
    Ok(first)
}

async fn members(client: &Client, experiment: &str, member: &Membership) -> Result<Vec<Run>, Error> {
    let mut runs = client.find_tagged(experiment, JOB_TAG, &member.job).await?;
    runs.retain(|run| run.replica().is_some() && !run.is_deleted());
    Ok(runs)
}

/// After a member's run has ended: all members under one parent, and its status and figures as they have become.
pub(super) async fn settle(
    client: &Client,
    experiment: &str,
    member: &Membership,
    start_time_ms: i64,
    aggregation: &Aggregation<'_>,
) -> Result<Settled, Error> {
    let parent = parent(client, experiment, member, start_time_ms).await?;
    let members = members(client, experiment, member).await?;
    for run in members.iter().filter(|run| run.tag(PARENT_TAG) != Some(parent.id())) {
        let tag = Record::Tag { tag: PARENT_TAG.to_owned(), value: parent.id().to_owned() };
        log(client, run.id(), vec![tag]).await?;
    }
    // Of several attempts that finished the first counts: the same for everyone who looks.
    let mut finished: BTreeMap<usize, &Run> = BTreeMap::new();
    for run in members.iter().filter(|run| run.status() == Some(RunStatus::Finished)) {
        let Some(index) = run.replica().filter(|index| *index < member.count) else { continue };
        let first = finished.entry(index).or_insert(run);
        if (run.end_time_ms(), run.id()) < (first.end_time_ms(), first.id()) {
            *first = run;
        }
    }
    if finished.len() < member.count {
        end_if_nobody_is_left(client, &parent, &members, member.count).await?;
        return Ok(Settled::Unfinished { finished: finished.len() });
    }
    let end_ms = finished.values().map(|run| run.end_time_ms()).max().unwrap_or_default();
    let now = parent.tag(AGGREGATE_TAG).is_none();
    if now {
        write_aggregate(client, &parent, &finished, end_ms, aggregation).await?;
    }
    client.end_run(parent.id(), RunStatus::Finished, end_ms).await?;
    Ok(Settled::Aggregated { link: client.link(&parent), now })
}

async fn write_aggregate(
    client: &Client,
    parent: &Run,
    finished: &BTreeMap<usize, &Run>,
    end_ms: i64,
    aggregation: &Aggregation<'_>,
) -> Result<(), Error> {
    let mut replicas = Vec::new();
    let mut left_bytes = MOST_FILE_BYTES;
    for (index, run) in finished {
        let mut files = Vec::new();
        for name in aggregation.files {
            let file = client.get_artifact(run, name, left_bytes).await?;
            left_bytes -= file.len();
            files.push(file);
        }
        replicas.push(FinishedReplica { index: *index, files });
    }
    let figures = (aggregation.figures)(&replicas).map_err(|detail| client.unusable(&detail))?;
    let points = figures.into_iter().filter_map(|(metric, value)| {
        Some(Record::Metric { metric, value: Finite::new(value)?, step: 0, timestamp_ms: end_ms })
    });
    log(client, parent.id(), points.chain(common_params(finished)).collect()).await?;
    // Last: whoever finds it may rely on the figures.
    let of: Vec<&str> = finished.values().map(|run| run.id()).collect();
    log(client, parent.id(), vec![Record::Tag { tag: AGGREGATE_TAG.to_owned(), value: of.join(" ") }]).await
}

/// What all replicas were set to. Whoever looks finds the same, and MLflow takes the same param twice.
fn common_params(finished: &BTreeMap<usize, &Run>) -> Vec<Record> {
    let mut replicas = finished.values();
    let Some(first) = replicas.next() else { return Vec::new() };
    let others: Vec<BTreeMap<&str, &str>> = replicas.map(|run| run.params().collect()).collect();
    first
        .params()
        .filter(|(name, value)| others.iter().all(|params| params.get(name) == Some(value)))
        .map(|(param, value)| Record::Param { param: param.to_owned(), value: value.to_owned() })
        .collect()
}

/// A job of which nobody runs any more, and not all have finished, has failed, or was killed. A further attempt opens it
/// again.
async fn end_if_nobody_is_left(client: &Client, parent: &Run, members: &[Run], count: usize) -> Result<(), Error> {
    let begun: BTreeSet<usize> = members.iter().filter_map(Run::replica).collect();
    if begun.len() < count || members.iter().any(Run::is_running) {
        return Ok(());
    }
    let failed = members.iter().any(|run| run.status() == Some(RunStatus::Failed));
    let status = if failed { RunStatus::Failed } else { RunStatus::Killed };
    let end_ms = members.iter().map(Run::end_time_ms).max().unwrap_or_default();
    client.end_run(parent.id(), status, end_ms).await
}

async fn log(client: &Client, run_id: &str, records: Vec<Record>) -> Result<(), Error> {
    for batch in Batcher::default().batches(records) {
        client.log_batch(run_id, &batch).await?;
    }
    Ok(())
}

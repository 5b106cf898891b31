//! Runs that belong together: the attempts and replicas of one job, found by the job's uid.
//!
//! There is no leader. Each member finds or creates the parent run, and looks again after it has ended: MLflow cannot create
//! a run exactly once, so two parents created at the same time are merged later, in the same way by every process: the one
//! with the smallest ID stays, the others are deleted, and all members are put under it. The aggregate is written by any
//! process that sees that every replica has finished. Two that see it at once write the same points, which MLflow keeps
//! once.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::batch::{Batcher, run_name};
use super::client::{Client, Run};
use super::record::{Finite, Record};
use super::{Error, RunKey, RunLink, RunStatus};

/// Tag with the job's UID.
pub(super) const JOB_TAG: &str = "flashjob.job_uid";
/// Tag with a member's replica index.
pub(super) const REPLICA_TAG: &str = "flashjob.replica";
/// MLflow's own tag for the parent of a run.
pub(super) const PARENT_TAG: &str = "mlflow.parentRunId";
/// Tag of a parent: the runs that its aggregate is made of. While it is present, no other aggregate is written.
const AGGREGATE_TAG: &str = "flashjob.aggregate_of";

/// Most bytes of all replicas' files, which are in memory together: enough for a million requests.
const MOST_FILE_BYTES: usize = 256 << 20;

/// Position of a run in a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// UID of the job.
    pub job: RunKey,
    /// Index of the replica.
    pub index: usize,
    /// Number of replicas. A single one has no parent.
    pub count: usize,
    /// Name of the parent run.
    pub parent_name: String,
}

impl Membership {
    fn parent_key(&self) -> RunKey {
        self.job.of_parent()
    }

    /// Tags of the run itself, without that of its parent.
    pub(super) fn tags(&self) -> Vec<(&'static str, String)> {
        vec![(JOB_TAG, self.job.to_string()), (REPLICA_TAG, self.index.to_string())]
    }
}

/// A finished replica with the files for an aggregate.
#[derive(Clone, Debug)]
pub struct FinishedReplica {
    /// Index of the replica.
    pub index: usize,
    /// Content of each requested file, in that order.
    pub files: Vec<Vec<u8>>,
}

/// Computes figures by name from the files of all replicas.
pub type Figures = dyn Fn(&[FinishedReplica]) -> Result<Vec<(String, f64)>, String> + Sync;

/// Inputs and function of an aggregate.
pub struct Aggregation<'a> {
    /// Artifacts of each replica's run.
    pub files: &'a [&'a str],
    /// Files to figures; an error is a sentence.
    pub figures: &'a Figures,
}

/// State of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Some replicas have not finished.
    Unfinished {
        /// Number of replicas with a finished run.
        finished: usize,
    },
    /// All replicas have finished, and the parent run has their figures.
    Aggregated {
        /// The parent run.
        link: RunLink,
        /// True if the figures were written by this call.
        now: bool,
    },
}

/// Prepares the run of a member: ends earlier attempts that were left running, and finds or creates the parent.
pub(super) async fn enter(
    client: &Client,
    experiment: &str,
    member: &Membership,
    own: &RunKey,
    start_time_ms: i64,
) -> Result<Option<Run>, Error> {
    for earlier in members(client, experiment, member).await? {
        let is_other = earlier.key() != Some(own.as_str());
        // Only older runs: a later attempt of the same replica may have begun already, and is not to be ended.
        if earlier.replica() == Some(member.index) && is_other && earlier.started_before(start_time_ms) {
            end_left_behind(client, &earlier, start_time_ms).await?;
        }
    }
    // A job of one replica needs no parent.
    if member.count == 1 {
        return Ok(None);
    }
    let parent = parent(client, experiment, member, start_time_ms).await?;
    // An earlier attempt ended the parent when none ran; an aggregate means that it is complete, and stays so.
    if parent.tag(AGGREGATE_TAG).is_none() && !parent.is_running() {
        client.reopen_run(parent.id()).await?;
    }
    Ok(Some(parent))
}

/// Ends an attempt whose process is gone and could not do so.
async fn end_left_behind(client: &Client, earlier: &Run, at_ms: i64) -> Result<(), Error> {
    if earlier.is_running() {
        let note = "another attempt began while this one was still open; this is what it had recorded";
        let tag = Record::Tag { tag: "flashjob.end".to_owned(), value: note.to_owned() };
        log(client, earlier.id(), vec![tag]).await?;
        client.end_run(earlier.id(), RunStatus::Killed, at_ms).await?;
    }
    Ok(())
}

/// Finds or creates the parent.
async fn parent(client: &Client, experiment: &str, member: &Membership, start_time_ms: i64) -> Result<Run, Error> {
    let key = member.parent_key();
    if let Some(found) = only_parent(client, experiment, &key).await? {
        return Ok(found);
    }
    let tags = [(JOB_TAG, member.job.to_string()), ("flashjob.replicas", member.count.to_string())];
    client.create_run(experiment, &key, &run_name(&member.parent_name), start_time_ms, &tags).await?;
    // Searched again instead of taking the one just created: another process may have created one meanwhile, and both
    // must choose the same.
    only_parent(client, experiment, &key).await?.ok_or_else(|| client.contradiction("look for the parent run"))
}

/// The parent that stays; duplicates are deleted.
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

/// Updates a job after a member's run has ended: puts all members under one parent, and sets its status and figures.
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
    let mut finished: BTreeMap<usize, Vec<&Run>> = BTreeMap::new();
    for run in members.iter().filter(|run| run.status() == Some(RunStatus::Finished)) {
        let Some(index) = run.replica().filter(|index| *index < member.count) else { continue };
        finished.entry(index).or_default().push(run);
    }
    // Of several finished attempts the first one counts, for every process that looks.
    finished.values_mut().for_each(|attempts| attempts.sort_by_key(|run| (run.end_time_ms(), run.id().to_owned())));
    if finished.len() < member.count {
        end_if_none_is_running(client, &parent, &members, member.count).await?;
        return Ok(Settled::Unfinished { finished: finished.len() });
    }
    // The time of the parent is that of its last replica, not of the process that happens to write it.
    let end_ms = finished.values().map(|attempts| attempts[0].end_time_ms()).max().unwrap_or_default();
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
    finished: &BTreeMap<usize, Vec<&Run>>,
    end_ms: i64,
    aggregation: &Aggregation<'_>,
) -> Result<(), Error> {
    let (mut replicas, mut taken) = (Vec::new(), BTreeMap::new());
    let mut left_bytes = MOST_FILE_BYTES;
    for (index, attempts) in finished {
        let (run, files) = files_of(client, attempts, aggregation.files, left_bytes).await?;
        // One limit for the files of all replicas, since all are in memory at a time.
        left_bytes -= files.iter().map(Vec::len).sum::<usize>();
        replicas.push(FinishedReplica { index: *index, files });
        taken.insert(*index, run);
    }
    let figures = (aggregation.figures)(&replicas).map_err(|detail| client.unusable(&detail))?;
    let points = figures.into_iter().filter_map(|(metric, value)| {
        // A fixed step and time: two processes that write the same point leave one.
        Some(Record::Metric { metric, value: Finite::new(value)?, step: 0, timestamp_ms: end_ms })
    });
    log(client, parent.id(), points.chain(common_params(&taken)).collect()).await?;
    // Written last: a process that finds the tag may rely on the figures.
    let of: Vec<&str> = taken.values().map(|run| run.id()).collect();
    log(client, parent.id(), vec![Record::Tag { tag: AGGREGATE_TAG.to_owned(), value: of.join(" ") }]).await
}

/// The first of a replica's finished `attempts` that has all files `named`, and these.
async fn files_of<'a>(
    client: &Client,
    attempts: &[&'a Run],
    named: &[&str],
    mut left_bytes: usize,
) -> Result<(&'a Run, Vec<Vec<u8>>), Error> {
    let mut missing = None;
    for run in attempts {
        let mut files = Vec::new();
        for name in named {
            match client.get_artifact(run, name, left_bytes).await {
                Ok(file) => {
                    left_bytes -= file.len();
                    files.push(file);
                }
                // It was ended before its files had arrived. Its process said so with its exit code, and a later attempt brings them.
                Err(error) if error.has_status(404) => {
                    missing = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        // Of an attempt without its files nothing is taken: figures of two attempts would be mixed.
        if files.len() == named.len() {
            return Ok((run, files));
        }
    }
    Err(missing.unwrap_or_else(|| client.contradiction("read the files of a finished run")))
}

/// Params that all replicas have in common. Every process computes the same, and MLflow accepts the same param twice.
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

/// Ends the parent of a job without a running member whose replicas have not all finished: as failed, or as killed. A
/// further attempt reopens it.
async fn end_if_none_is_running(client: &Client, parent: &Run, members: &[Run], count: usize) -> Result<(), Error> {
    let begun: BTreeSet<usize> = members.iter().filter_map(Run::replica).collect();
    // A replica that has not begun yet may still come.
    if begun.len() < count || members.iter().any(Run::is_running) {
        return Ok(());
    }
    // A failure says more than an interruption.
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

//! A sweep: combinations of settings in one job, each with a result and a run in MLflow of its own.
//!
//! A model stays loaded for all combinations that can share it. Repeated regions of combinations take turns, so that a machine that
//! becomes slower in the course of a sweep does so for all of them. What fails is recorded, and the sweep goes on; what an earlier
//! attempt in the same `results-dir` has finished is not run again.

mod group;
mod list;
mod record;

use std::time::Duration;

use flashjob_config::{Combination, JobConfig, PlannedJob, Reload, Repeats, Sweep};

pub use self::list::list;

use self::group::Group;
use self::record::SweepRecord;
use super::Exit;
use super::context::Context;
use super::exit::Failure;
use super::finish;
use super::work::{self, Work};

/// Combinations whose regions take turns at most: each of them holds its prompts, and a connection to MLflow.
const MOST_IN_TURN: usize = 16;

/// The configuration of the job as a whole: that of its first combination, with the keys that differ marked as such.
pub fn whole(sweep: &Sweep) -> Option<JobConfig> {
    let mut job = sweep.planned().next().map(|(_, planned)| (*planned.config).clone())?;
    for setting in job.settings.iter_mut().filter(|setting| sweep.keys.contains(&setting.key)) {
        "differs from combination to combination".clone_into(&mut setting.value);
    }
    Some(job)
}

/// Runs every combination of `sweep`. Inputs are mounted into `work`; results are in directories of their own.
///
/// # Errors
/// Inputs that cannot be mounted, a signal, or no combination that finished: the failure of the first.
pub async fn perform(context: &Context, sweep: &Sweep, work: &mut Work) -> Result<(), Failure> {
    work::mount(context, work).await?;
    let mut record = SweepRecord::new(&context.results.directory, sweep);
    let mut flush = finish::FLUSH;
    for combinations in groups(sweep) {
        if context.signals.cancel().is_cancelled() {
            break;
        }
        let mut group = Group::new(context, work);
        let in_turn = match combinations.iter().any(|(_, planned)| planned.config.workload.repeats != Repeats::ONCE) {
            true => MOST_IN_TURN,
            false => 1,
        };
        let to_run: Vec<_> = combinations
            .into_iter()
            .filter(|(combination, planned)| !record.is_finished(combination, planned))
            .collect();
        for turns in to_run.chunks(in_turn) {
            let ended = group.run(&to_run, turns, flush).await;
            for (combination, outcome) in ended {
                flush = patience(flush, outcome.exit_code);
                record.note(combination, &outcome);
            }
            if context.signals.cancel().is_cancelled() {
                break;
            }
        }
    }
    record.show();
    match context.signals.exit() {
        Some(signal) => {
            tracing::warn!("the same command with the same results-dir goes on with what is left of the sweep");
            Err(Failure::sentence(signal, "the sweep was stopped"))
        }
        None => record.end(),
    }
}

/// Time that MLflow has for the next combination: little, once it could not take one.
fn patience(before: Duration, exit_code: u8) -> Duration {
    match exit_code == Exit::Undelivered.code() {
        true => finish::FLUSH_AFTER_SIGNAL,
        false => before,
    }
}

/// Combinations that can run, those that share a loaded model together.
fn groups(sweep: &Sweep) -> Vec<Vec<(&Combination, &PlannedJob)>> {
    let mut groups: Vec<Vec<(&Combination, &PlannedJob)>> = Vec::new();
    for (combination, planned) in sweep.planned() {
        let leaves_open = |job: &PlannedJob| {
            let engine = &job.config.engine;
            (engine.max_num_seqs.is_none(), engine.max_num_batched_tokens.is_none())
        };
        match groups.last_mut() {
            // A limit that the engine is to choose is chosen while it loads.
            Some(group) if planned.reload < Reload::Model && leaves_open(group[0].1) == leaves_open(planned) => {
                group.push((combination, planned));
            }
            _ => groups.push(vec![(combination, planned)]),
        }
    }
    groups
}

//! A job on a worker node: it loads its ranks, computes the steps of the leader, and ends as the leader does.
//!
//! It has measured nothing: no `result.json`, no run in MLflow, nothing to publish. Its log says what it was.

use serde_json::json;

use flashjob_config::JobConfig;
use flashjob_event::{Fact, Phase};

use super::context::Context;
use super::exit::Failure;
use super::faults;
use super::files::MountedFiles;
use super::finish::Ending;
use super::load::{self, Sources, ToLoad};
use super::run::blocking;
use super::signals::Signals;
use super::work::{self, STEP_PATIENCE};
use super::{Exit, termination_file};
use crate::backend::{self, Found};

/// Characters of an error in the termination message, whose 4096 bytes must hold them whatever they are.
const LONGEST_ERROR: usize = 600;

/// Loads the ranks of this node and computes the steps of the leader to the end.
///
/// # Errors
/// A failure of this node, or the one that the leader reports.
pub async fn run(context: &Context, found: Found, files: MountedFiles, sources: &Sources) -> Result<(), Failure> {
    if let Some(nodes) = &context.job.nodes {
        tracing::info!(
            node_rank = nodes.node_rank,
            num_nodes = nodes.num_nodes,
            leader = nodes.leader,
            port = nodes.port,
            "this node is a worker: the leader schedules, measures and reports"
        );
    }
    let cancel = context.signals.cancel();
    // Never opened: a worker computes token ids, and only the leader reads texts.
    let texts = load::texts(sources);
    let worker = load::load(
        context,
        ToLoad { job: &context.job, found, files, sources },
        texts,
        cancel.clone(),
        backend::open_worker,
    )
    .await?;
    work::announce(&context.results.tracking, worker.report());
    context.observability.events.emit(Fact::PhaseStarted(Phase::Follow));
    let to_follow = cancel.clone();
    let followed = blocking(cancel, STEP_PATIENCE, move || worker.follow(&to_follow)).await?;
    followed.map_err(|error| faults::explain(work::from_backend(error), &context.resources.gpus))
}

/// Takes mounts down and says how it ended; gives the exit code.
pub fn finish(job: &JobConfig, signals: &Signals, ending: Ending) -> Exit {
    let Ending { status, exit, error, mut work } = ending;
    let exit = signals.exit().unwrap_or(exit);
    let error = error.map(|error| job.hide(&error));
    match &error {
        Some(error) => tracing::error!(exit_code = exit.code(), "{error}"),
        None => tracing::info!("the leader says that the job is done; it has the results"),
    }
    tokio::task::block_in_place(|| work.unmount());
    let error: Option<String> = error.map(|error| error.chars().take(LONGEST_ERROR).collect());
    termination_file::write(
        job.telemetry.termination_message.as_deref(),
        &json!({"status": status, "exit_code": exit.code(), "error": error, "led_by_another_machine": true})
            .to_string(),
    );
    exit
}

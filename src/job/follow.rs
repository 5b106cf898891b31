//! A job on a machine that another one leads: it loads its ranks, computes what it is told, and ends as the leader does.
//!
//! It has measured nothing: no `result.json`, no run in MLflow, nothing to publish. Its log says what it was.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::exit::Failure;
use super::files::MountedFiles;
use super::finish::Ending;
use super::run::{Context, blocking};
use super::work::{self, STEP_PATIENCE};
use super::{Exit, environment};
use crate::backend::{self, Follower, Found};
use flashjob_engine::Rendezvous;
use flashjob_event::{Fact, Phase};

/// Characters of an error in the termination message, whose 4096 bytes must hold them whatever they are.
const LONGEST_ERROR: usize = 600;

/// Loads and follows to the end.
///
/// # Errors
/// What went wrong here, or what the leader says.
pub async fn follow(
    context: &Context,
    found: Found,
    rendezvous: &Arc<Rendezvous>,
    files: MountedFiles,
    model: PathBuf,
) -> Result<(), Failure> {
    let Found::Candle(placement) = found else {
        return Err(Failure::sentence(Exit::Configuration, "only backend=candle shares a model with other machines"));
    };
    let machines = rendezvous.nodes();
    tracing::info!(
        index = machines.index,
        machines = machines.count,
        leader = machines.leader,
        port = machines.port,
        "this machine follows another one"
    );
    let cancel = context.signals.cancel().clone();
    let open = {
        let (job, events, cancel) = (context.job.clone(), context.events.clone(), cancel.clone());
        let rendezvous = Arc::clone(rendezvous);
        move || Follower::open(placement, &job, &rendezvous, &files, &model, &events, &cancel)
    };
    let follower = blocking(context.signals.cancel(), STEP_PATIENCE, open).await?.map_err(work::from_backend)?;
    work::state(context, follower.facts());
    context.events.emit(Fact::PhaseStarted(Phase::Follow));
    let followed: Result<(), backend::Error> =
        blocking(context.signals.cancel(), STEP_PATIENCE, move || follower.follow(&cancel)).await?;
    followed.map_err(work::from_backend)
}

/// Takes mounts down and says how it ended; gives the exit code.
pub fn finish(context: &Context, ending: Ending) -> Exit {
    let Ending { status, exit, error, mut work } = ending;
    let exit = context.signals.exit().unwrap_or(exit);
    let error = error.map(|error| context.job.hide(&error));
    match &error {
        Some(error) => tracing::error!(exit_code = exit.code(), "{error}"),
        None => tracing::info!("the leader says that the job is done; it has the results"),
    }
    tokio::task::block_in_place(|| work.unmount());
    let error: Option<String> = error.map(|error| error.chars().take(LONGEST_ERROR).collect());
    environment::leave_termination_message(
        context.job.telemetry.termination_message.as_deref(),
        &json!({"status": status, "exit_code": exit.code(), "error": error, "led_by_another_machine": true})
            .to_string(),
    );
    exit
}

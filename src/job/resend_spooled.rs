//! Delivery of runs that are still spooled in the results directory: a process that was killed outright (out of memory) cannot
//! end its run, so the next one does it, and sends along whatever else could not be sent.

use std::path::Path;
use std::time::Duration;

use flashjob_config::JobConfig;
use flashjob_mlflow::{self as mlflow, Access, Outcome};

/// Time that the server has in all.
const LIMIT: Duration = Duration::from_secs(60);

/// Sends the runs spooled in `directory`, if any, to the server that this job records at. Runs of other servers stay where
/// they are: these credentials are not theirs.
pub async fn send(job: &JobConfig, directory: &Path) {
    let Some(tracking) = job.tracking.as_ref().filter(|_| directory.join("mlflow").is_dir()) else { return };
    let access = Access {
        uri: None,
        only_at: Some(tracking.uri.clone()),
        experiment: None,
        workspace: None,
        credentials: tracking.credentials.clone(),
        insecure_tls: tracking.insecure_tls,
        server_cert_path: tracking.server_cert_path.clone(),
    };
    let directory_shown = directory.display();
    // A directory without a run to send is no news.
    for run in mlflow::publish(directory, &access, LIMIT).await.unwrap_or_default() {
        match run.outcome {
            Outcome::Delivered { link, notes } => {
                let notes = notes.join("; ");
                tracing::info!(run = %run.key, url = link.run_url, notes, "an earlier run was sent to MLflow");
            }
            Outcome::Failed { reason } => tracing::warn!(
                run = %run.key,
                reason,
                "an earlier run is still only on disk: `flashjob publish {directory_shown}` sends it"
            ),
            Outcome::AlreadyDelivered { .. } | Outcome::StillRunning => {}
        }
    }
}

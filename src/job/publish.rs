//! `flashjob publish DIR`: delivers what an earlier run could not.

use std::time::Duration;

use flashjob_config::{Credentials, OutputStorage};
use flashjob_config_parser::Publish;
use flashjob_event::Events;
use flashjob_mlflow::{self as mlflow, Access, Outcome};
use flashjob_results::{CombinationStatus, Sweep};
use tokio::runtime::Runtime;

use super::{Exit, exit, replicas, terminal, upload};
use crate::report::ResultsDirectory;

/// Time that the server has in all.
const LIMIT: Duration = Duration::from_secs(300);

/// Sends the result files to the bucket and every run spooled in the directory to MLflow. Exit 6 while one of them is still
/// only on disk.
pub fn publish(asked: Publish) -> Exit {
    let access = access(&asked);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::before_log(Exit::Unexpected, &format!("no threads for the runtime: {error}")),
    };
    let exit = publish_one(&asked, &access, &runtime);
    // The combinations of a sweep after the sweep itself: in MLflow they are shown under it.
    let combinations = Sweep::read(&asked.dir).map(|sweep| sweep.combinations).unwrap_or_default();
    let of_sweep = combinations.iter().filter(|combination| combination.status != CombinationStatus::Refused);
    of_sweep.fold(exit, |exit, combination| {
        let output = asked
            .output
            .clone()
            .map(|output| OutputStorage { prefix: format!("{}{}/", output.prefix, combination.directory), ..output });
        let asked = Publish { dir: asked.dir.join(&combination.directory), output, tracking: asked.tracking.clone() };
        match publish_one(&asked, &access, &runtime) {
            Exit::Done => exit,
            failed => failed,
        }
    })
}

/// Sends what one directory has.
fn publish_one(asked: &Publish, access: &Access, runtime: &Runtime) -> Exit {
    // The bucket first: what MLflow says does not keep the files from where they belong.
    let sent = runtime.block_on(to_bucket(asked));
    match runtime.block_on(mlflow::publish(&asked.dir, access, LIMIT)) {
        // A directory whose run was not tracked has no spool, which is no failure where the bucket was asked for.
        Err(_) if asked.output.is_some() && asked.tracking.is_none() => sent,
        Err(error) => exit::before_log(Exit::Configuration, &error.to_string()),
        Ok(runs) => {
            let mut exit = sent;
            for run in runs {
                let name = run.key;
                let mut more = Vec::new();
                let line = match run.outcome {
                    Outcome::Delivered { link, notes } => {
                        more = notes;
                        format!("{name}: delivered, {}", link.run_url)
                    }
                    Outcome::AlreadyDelivered { link } => format!("{name}: had been delivered, {}", link.run_url),
                    Outcome::StillRunning => format!("{name}: its job is still running"),
                    Outcome::Failed { reason } => {
                        exit = Exit::Undelivered;
                        format!("{name}: not delivered, {reason}")
                    }
                };
                terminal::tell(&line);
                for note in more {
                    terminal::tell(&format!("  {note}"));
                }
                if let Some((tracking, member)) = &run.part_of
                    && let Err(error) = runtime.block_on(replicas::settle(tracking, member, LIMIT))
                {
                    exit = exit::before_log(Exit::Undelivered, &error.to_string());
                }
            }
            exit
        }
    }
}

/// Puts the result files into the output bucket, where one is named.
async fn to_bucket(asked: &Publish) -> Exit {
    let Some(output) = &asked.output else { return Exit::Done };
    let directory = ResultsDirectory::existing(&asked.dir);
    let files = directory.files().into_iter().chain(directory.answers()).collect();
    match upload::upload(output, &directory, files, LIMIT, &Events::default()).await {
        Ok(names) => terminal::tell(&format!("{}: in the bucket {}", names.join(", "), output.par)),
        Err(error) => exit::before_log(Exit::Undelivered, &error.to_string()),
    }
}

/// The spool knows where the run belongs; what the user says now goes before it.
fn access(asked: &Publish) -> Access {
    match &asked.tracking {
        Some(tracking) => Access {
            uri: Some(tracking.uri.clone()),
            only_at: None,
            experiment: None,
            workspace: tracking.workspace.clone(),
            credentials: tracking.credentials.clone(),
            insecure_tls: tracking.insecure_tls,
            server_cert_path: tracking.server_cert_path.clone(),
        },
        None => Access {
            uri: None,
            only_at: None,
            experiment: None,
            workspace: None,
            credentials: Credentials::Anonymous,
            insecure_tls: false,
            server_cert_path: None,
        },
    }
}

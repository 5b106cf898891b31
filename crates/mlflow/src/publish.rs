//! `flashjob publish DIR`: sends later what could not be sent in time.
//!
//! Exactly once: a run that has been delivered says so on disk, one that was half sent is found on the server by
//! its key, and the spool's lock keeps two publishers, or a publisher and the job itself, from doing it at the
//! same time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use super::client::Client;
use super::record::Record;
use super::sender::Sender;
use super::spool::{End, Opened, Spool};
use super::{Delivery, Error, Membership, RunKey, RunLink, RunStatus};
use flashjob_config::{Credentials, Tracking};

/// Interval at which a lock of another process is tried again.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// Access to the server at the time of publishing. The spool has address, experiment and workspace, but no credentials.
#[derive(Clone, Debug)]
pub struct Access {
    /// Overrides the address in the spool.
    pub uri: Option<Url>,
    /// Skips runs that were recorded for another server.
    pub only_at: Option<Url>,
    /// Overrides the experiment in the spool. A run that had begun there stays there unchanged.
    pub experiment: Option<String>,
    /// Overrides the workspace in the spool.
    pub workspace: Option<String>,
    /// Credentials for the server.
    pub credentials: Credentials,
    /// Accepts any certificate.
    pub insecure_tls: bool,
    /// Accepts the certificates in this PEM file instead of the system's.
    pub server_cert_path: Option<PathBuf>,
}

/// One run found in the directory.
#[derive(Clone, Debug)]
pub struct Published {
    /// Key of the run, which is also the name of its directory.
    pub key: RunKey,
    /// Result for the run.
    pub outcome: Outcome,
    /// The job that the run belongs to, and the server that has it.
    pub part_of: Option<(Tracking, Membership)>,
}

/// Result for a spooled run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was sent now.
    Delivered {
        /// Location of the run.
        link: RunLink,
        /// Remarks for the user.
        notes: Vec<String>,
    },
    /// The run had been sent before; nothing was done.
    AlreadyDelivered {
        /// Location of the run.
        link: RunLink,
    },
    /// The job that records it is still running.
    StillRunning,
    /// The run is still only on disk.
    Failed {
        /// Reason, as a sentence.
        reason: String,
    },
}

/// Sends every run spooled in `results_dir`, exactly once each, oldest first, trying for at most `limit` in all.
///
/// # Errors
/// When the directory holds no spooled run or cannot be read; what happens to each run is in its [`Outcome`].
pub async fn publish(results_dir: &Path, access: &Access, limit: Duration) -> Result<Vec<Published>, Error> {
    let deadline = Instant::now() + limit;
    let mut published = Vec::new();
    for directory in Spool::find(results_dir)? {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Other directories are not ours.
        let Ok(key) = RunKey::try_from(name) else { continue };
        let outcome = publish_one(&directory, access, deadline).await;
        match outcome {
            Ok(Some((outcome, part_of))) => published.push(Published { key, outcome, part_of }),
            Ok(None) => {}
            Err(error) => {
                let outcome = Outcome::Failed { reason: error.to_string() };
                published.push(Published { key, outcome, part_of: None });
            }
        }
    }
    if published.is_empty() {
        return Err(Error::NothingSpooled { path: results_dir.to_owned() });
    }
    Ok(published)
}

/// Result for a run, and the job that the run belongs to.
type One = (Outcome, Option<(Tracking, Membership)>);

/// Publishes one run. `None` if its job died before it had recorded anything.
async fn publish_one(directory: &Path, access: &Access, deadline: Instant) -> Result<Option<One>, Error> {
    // Polled: a file lock has no wait with a deadline.
    let spool = loop {
        match Spool::open(directory)? {
            Opened::Run(spool) => break spool,
            Opened::Empty => return Ok(None),
            // A lock on a run without an end belongs to the job that records it; with an end, to a process that sends
            // it and will finish soon.
            Opened::Locked if !Spool::has_ended(directory) => return Ok(Some((Outcome::StillRunning, None))),
            Opened::Locked if Instant::now() >= deadline => {
                return Ok(Some((Outcome::Failed { reason: "another process is sending it".to_owned() }, None)));
            }
            Opened::Locked => tokio::time::sleep(LOCK_INTERVAL).await,
        }
    };
    let beginning = &spool.beginning;
    if access.only_at.as_ref().is_some_and(|uri| *uri != beginning.tracking_uri) {
        return Ok(None);
    }
    let tracking = Tracking {
        uri: access.uri.clone().unwrap_or_else(|| beginning.tracking_uri.clone()),
        experiment: access.experiment.clone().unwrap_or_else(|| beginning.experiment.clone()),
        run_name: None,
        credentials: access.credentials.clone(),
        insecure_tls: access.insecure_tls,
        server_cert_path: access.server_cert_path.clone(),
        workspace: access.workspace.clone().or_else(|| beginning.workspace.clone()),
    };
    let part_of = beginning.member.clone().map(|member| (tracking.clone(), member));
    // Checked under the lock: another publisher may just have finished.
    if let Some(link) = spool.delivered()? {
        return Ok(Some((Outcome::AlreadyDelivered { link }, part_of)));
    }
    let client = Client::open(&tracking)?;
    let end = match spool.end()? {
        Some(end) => end,
        None => {
            let end = killed(&spool)?;
            // Written before it is sent, so that a second attempt sends the same end.
            spool.write_end(&end)?;
            end
        }
    };
    let delivery = Sender::new(client, tracking.experiment).complete(&spool, &end, deadline).await;
    let outcome = match delivery {
        Delivery::Delivered { link, notes } => Outcome::Delivered { link, notes },
        Delivery::Spooled { reason } | Delivery::Lost { reason } => Outcome::Failed { reason },
    };
    Ok(Some((outcome, part_of)))
}

/// The end of a run whose process died without one, at the time of its last record.
fn killed(spool: &Spool) -> Result<End, Error> {
    let mut end_time_ms = spool.beginning.start_time_ms;
    let mut position = 0;
    loop {
        let page = spool.page(position)?;
        if page.next == position {
            break;
        }
        position = page.next;
        for record in page.records {
            if let Record::Metric { timestamp_ms, .. } = record {
                // The last point is the latest time at which the job is known to have lived.
                end_time_ms = end_time_ms.max(timestamp_ms);
            }
        }
    }
    let note = "the job died before its end; this is what it had recorded".to_owned();
    Ok(End {
        status: RunStatus::Killed,
        end_time_ms,
        metrics: Vec::new(),
        tags: vec![("flashjob.end".to_owned(), note.clone())],
        artifacts: Vec::new(),
        notes: vec![note],
    })
}

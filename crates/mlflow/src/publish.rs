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

/// How often a lock that somebody else holds is tried again.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// How to reach the server now. The spool remembers address, experiment and workspace, but no credentials.
#[derive(Clone, Debug)]
pub struct Access {
    /// Instead of the address in the spool.
    pub uri: Option<Url>,
    /// Leave runs alone that were recorded for another server.
    pub only_at: Option<Url>,
    /// Instead of the experiment in the spool. A run that had begun in that one stays there as it is.
    pub experiment: Option<String>,
    /// Instead of the workspace in the spool.
    pub workspace: Option<String>,
    /// How to log in.
    pub credentials: Credentials,
    /// Accept any certificate.
    pub insecure_tls: bool,
    /// Accept the certificates in this PEM file instead of the system's.
    pub server_cert_path: Option<PathBuf>,
}

/// One run found in the directory.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its key, which is also the name of its folder.
    pub key: RunKey,
    /// What became of it.
    pub outcome: Outcome,
    /// The job that it is a part of, and the server that has it.
    pub part_of: Option<(Tracking, Membership)>,
}

/// What became of a spooled run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was sent now.
    Delivered {
        /// Where it is.
        link: RunLink,
        /// What a person should know all the same.
        notes: Vec<String>,
    },
    /// It had been sent before; nothing was done.
    AlreadyDelivered {
        /// Where it is.
        link: RunLink,
    },
    /// The job that records it is still running.
    StillRunning,
    /// It is still only on disk.
    Failed {
        /// Why.
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

/// What became of a run, and the job that it is a part of.
type One = (Outcome, Option<(Tracking, Membership)>);

/// `None` where a job died before it had recorded anything.
async fn publish_one(directory: &Path, access: &Access, deadline: Instant) -> Result<Option<One>, Error> {
    let spool = loop {
        match Spool::open(directory)? {
            Opened::Run(spool) => break spool,
            Opened::Empty => return Ok(None),
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
    if let Some(link) = spool.delivered()? {
        return Ok(Some((Outcome::AlreadyDelivered { link }, part_of)));
    }
    let client = Client::open(&tracking)?;
    let end = match spool.end()? {
        Some(end) => end,
        None => {
            let end = killed(&spool)?;
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

/// The end of a run whose process died without one: when it last said something.
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

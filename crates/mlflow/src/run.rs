//! A run, from its beginning to its delivery. Plain data without I/O.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;

use super::group::Membership;

/// Identifies a run before the server has given it an id: sent as a tag, so that a run whose creation was
/// interrupted is found again instead of being created twice. Letters, digits and `-` only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct RunKey(String);

impl RunKey {
    /// A key that no other run has: the start in UTC, for people, and 64 random bits.
    pub fn random(start: SystemTime) -> Self {
        let start = OffsetDateTime::from(start)
            .format(format_description!("[year][month][day]T[hour][minute][second]Z"))
            .unwrap_or_default();
        // Begins with the time, so that directories sort by age.
        Self(format!("{start}-{:016x}", rand::random::<u64>()))
    }

    /// Key of the parent run of the job that this key names.
    pub(super) fn of_parent(&self) -> Self {
        Self(format!("job-{}", self.0))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RunKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // Keys are directory names and stand in MLflow's filters between quotes: nothing that either would interpret.
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text))
        } else {
            Err(format!("`{text}` is not a run key: 1 to 64 letters, digits and hyphens"))
        }
    }
}

impl fmt::Display for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A run at its beginning.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// Unique key, see [`RunKey::random`].
    pub key: RunKey,
    /// Name shown in MLflow; if empty, the server chooses one.
    pub run_name: String,
    /// Settings, secrets redacted. A param can be added later but never changed.
    pub params: Vec<(String, String)>,
    /// Versions, host, device and the like.
    pub tags: Vec<(String, String)>,
    /// Start of the run.
    pub start: SystemTime,
    /// Position in a job of several attempts or replicas.
    pub member: Option<Membership>,
    /// Key of the run that this one is shown under, such as that of a sweep: recorded by this process or an earlier one.
    pub parent: Option<RunKey>,
}

/// Final status of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunStatus {
    /// The run measured what was asked.
    Finished,
    /// The run failed.
    Failed,
    /// The run was stopped.
    Killed,
}

/// A run at its end.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// Final status of the run.
    pub status: RunStatus,
    /// Time of the end.
    pub at: SystemTime,
    /// Final values, which become the newest points of their names.
    pub metrics: Vec<(String, f64)>,
    /// Tags known only now, such as the reason of a failure.
    pub tags: Vec<(String, String)>,
    /// Files to attach, inside the results directory (their path in it becomes their name) or elsewhere
    /// (their file name does). They are copied before the first attempt to send them.
    pub artifacts: Vec<PathBuf>,
}

/// Location of a run on the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLink {
    /// The server's ID of the experiment.
    pub experiment_id: String,
    /// The server's ID of the run.
    pub run_id: String,
    /// URL for a browser.
    pub run_url: String,
}

/// Result of recording a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The server has all of it.
    Delivered {
        /// Location of the run.
        link: RunLink,
        /// Remarks for the user, such as an artifact store that this client cannot write to.
        notes: Vec<String>,
    },
    /// All of it is on disk, and `flashjob publish DIR` sends it.
    Spooled {
        /// Reason why the server does not have it.
        reason: String,
    },
    /// Neither the server nor the disk has all of it.
    Lost {
        /// Reason of the loss.
        reason: String,
    },
}

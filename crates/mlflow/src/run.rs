//! What a run is, from its beginning to what became of it. Plain data; nothing here does I/O.

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
        Self(format!("{start}-{:016x}", rand::random::<u64>()))
    }

    /// The key of the run above all runs of the job that this key names.
    pub(super) fn of_parent(&self) -> Self {
        Self(format!("job-{}", self.0))
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RunKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
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

/// A run as it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// Unique, see [`RunKey::random`].
    pub key: RunKey,
    /// Shown in MLflow; empty lets the server make one up.
    pub run_name: String,
    /// Settings, secrets redacted. A param can be added later but never changed.
    pub params: Vec<(String, String)>,
    /// Versions, host, device and the like.
    pub tags: Vec<(String, String)>,
    /// When it began.
    pub start: SystemTime,
    /// Its place in a job of several attempts or replicas.
    pub member: Option<Membership>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunStatus {
    /// It measured what it was asked to.
    Finished,
    /// It could not.
    Failed,
    /// Someone stopped it.
    Killed,
}

/// A run as it ends.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// How.
    pub status: RunStatus,
    /// When.
    pub at: SystemTime,
    /// Final values; they become the newest point of their names.
    pub metrics: Vec<(String, f64)>,
    /// Tags known only now, such as the reason of a failure.
    pub tags: Vec<(String, String)>,
    /// Files to attach, inside the results directory (their path in it becomes their name) or elsewhere
    /// (their file name does). They are copied before the first attempt to send them.
    pub artifacts: Vec<PathBuf>,
}

/// Where a run is to be found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLink {
    /// The server's id of the experiment.
    pub experiment_id: String,
    /// The server's id of the run.
    pub run_id: String,
    /// A link for a browser.
    pub run_url: String,
}

/// What became of a run's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// All of it is on the server.
    Delivered {
        /// Where.
        link: RunLink,
        /// What a person should know all the same, such as an artifact store that this client cannot write to.
        notes: Vec<String>,
    },
    /// It is on disk and `flashjob publish DIR` sends it.
    Spooled {
        /// Why the server could not take it.
        reason: String,
    },
    /// It is neither on the server nor completely on disk.
    Lost {
        /// Why not.
        reason: String,
    },
}

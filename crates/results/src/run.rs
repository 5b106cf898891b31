//! Parts of a result that runs write and readers read in the same form.

use flashjob_event::Phase;
use serde::{Deserialize, Serialize};

/// Status of a run that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Measured, with exact counts.
    Finished,
    /// Ended by an error.
    Failed,
    /// Ended by a signal.
    Killed,
}

impl Status {
    /// Name in files and logs.
    pub fn name(self) -> &'static str {
        match self {
            Status::Finished => "finished",
            Status::Failed => "failed",
            Status::Killed => "killed",
        }
    }
}

/// Duration of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseSeconds {
    /// Phase that was timed.
    pub phase: Phase,
    /// From its start to the next one's, or to now for the last.
    pub seconds: f64,
}

/// Report on one mounted input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputReport {
    /// Path of its files.
    pub location: String,
    /// `fuse`, `copy` or `existing`.
    pub method: String,
    /// Reason for this method.
    pub reason: String,
    /// The PAR with its token redacted.
    pub source: Option<String>,
}

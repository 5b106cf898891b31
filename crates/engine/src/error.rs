//! Failures between a model and its tokens.

use crate::schedule::request::Refused;
use flashjob_model as model;

/// Failure to load a model or to serve requests.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Someone asked it to stop.
    #[error("the engine was cancelled")]
    Cancelled,
    /// The weights cannot be read.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The model cannot be split over so many ranks.
    #[error("tensor-parallel-size={asked} does not suit this model: {reason}")]
    TensorParallel {
        /// Ranks asked for.
        asked: usize,
        /// The number that does not divide.
        reason: String,
    },
    /// There is not enough memory.
    #[error("{what} needs {}, but {}; {advice}", size(.needed_bytes), available(.available_bytes))]
    DoesNotFit {
        /// Name of what was to be placed in memory.
        what: String,
        /// Bytes that it takes.
        needed_bytes: u64,
        /// Bytes that there are for it.
        available_bytes: u64,
        /// A change of settings that helps.
        advice: String,
    },
    /// A setting makes no sense together with the others or the model.
    #[error("{0}")]
    Setting(String),
    /// A request cannot be served, whatever else runs.
    #[error(transparent)]
    Request(#[from] Refused),
    /// Other nodes that share the model cannot be reached, or no longer.
    #[error("{0}")]
    Machines(String),
    /// Another node has ended the job.
    #[error("{peer} ended: {}", .end.sentence)]
    Ended {
        /// Name of the node.
        peer: String,
        /// Exit code and reason.
        end: End,
    },
    /// An operation failed.
    #[error("cannot {attempt}: {source}")]
    Compute {
        /// The attempt, as a verb with its object.
        attempt: &'static str,
        /// The operation's own error.
        source: candle_core::Error,
    },
}

impl Error {
    /// Names what was attempted when an operation failed.
    pub fn compute(attempt: &'static str) -> impl Fn(candle_core::Error) -> Self {
        move |source| Error::Compute { attempt, source }
    }
}

/// A node's last word.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct End {
    /// The exit code that its process will have.
    pub code: u8,
    /// Reason; empty where all went well.
    pub sentence: String,
}

/// In the largest binary unit that keeps it above one.
fn size(bytes: &u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    UNITS
        .iter()
        .find(|(_, unit)| bytes >= unit)
        .map_or_else(|| format!("{bytes} bytes"), |(name, unit)| format!("{:.1} {name}", *bytes as f64 / *unit as f64))
}

fn available(bytes: &u64) -> String {
    if *bytes == 0 { "nothing is left for it".into() } else { format!("only {} are there for it", size(bytes)) }
}

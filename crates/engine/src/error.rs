//! What can go wrong between a model and its tokens.

use crate::cluster::link::{End, LinkError};
use flashjob_event::RequestId;
use flashjob_model as model;

/// Why a model was not loaded or requests were not served.
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
        /// What does not divide.
        reason: String,
    },
    /// There is not enough memory.
    #[error("{what} needs {}, but {}; {advice}", size(.needed_bytes), available(.available_bytes))]
    DoesNotFit {
        /// What was to be placed in memory.
        what: String,
        /// What that takes.
        needed_bytes: u64,
        /// What there is for it.
        available_bytes: u64,
        /// What to change.
        advice: String,
    },
    /// A setting makes no sense together with the others or the model.
    #[error("{0}")]
    Setting(String),
    /// A request cannot be served, whatever else runs.
    #[error("request {} cannot run: {reason}", .request.0)]
    Request {
        /// Which.
        request: RequestId,
        /// What is wrong with it and what to change.
        reason: String,
    },
    /// Other machines that share the model cannot be reached, or no longer.
    #[error("{0}")]
    Machines(String),
    /// Another machine has ended the job.
    #[error("{peer} ended: {}", .end.sentence)]
    Ended {
        /// Which.
        peer: String,
        /// Its last word.
        end: End,
    },
    /// An operation failed.
    #[error("cannot {attempt}: {source}")]
    Compute {
        /// What was attempted.
        attempt: &'static str,
        /// What the operation said.
        source: candle_core::Error,
    },
}

impl From<LinkError> for Error {
    fn from(silence: LinkError) -> Self {
        match silence {
            LinkError::Cancelled => Error::Cancelled,
            LinkError::Ended { peer, end } => Error::Ended { peer, end },
            LinkError::Broken(sentence) => Error::Machines(sentence),
        }
    }
}

impl Error {
    /// Names what was attempted when an operation failed.
    pub(crate) fn compute(attempt: &'static str) -> impl Fn(candle_core::Error) -> Self {
        move |source| Error::Compute { attempt, source }
    }
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

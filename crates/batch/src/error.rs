//! Reasons for which answers cannot be kept, each as one sentence.

use std::io;
use std::path::Path;

/// Reason for refusing a directory, or for the end of writing to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The place holds answers of another batch.
    #[error("`{place}` holds the answers of another batch: {difference}; {advice}")]
    OtherBatch {
        /// Results directory, or a place in a bucket.
        place: String,
        /// The first difference, as a clause.
        difference: String,
        /// Ways to go on, as a clause.
        advice: &'static str,
    },
    /// A manifest that is none.
    #[error("`{path}` is no manifest of flashjob: {reason}; {advice}")]
    Manifest {
        /// Path of the manifest, or its name in a bucket.
        path: String,
        /// The first deviation, as a clause.
        reason: String,
        /// Ways to go on, as a clause.
        advice: &'static str,
    },
    /// As the file system says.
    #[error(
        "`{path}` cannot be {action}: {source}; what is answered so far is kept, and the same job goes on with the rest once that is \
         mended"
    )]
    Io {
        /// File or directory.
        path: String,
        /// Past participle of what was attempted.
        action: &'static str,
        /// Reason of the system.
        source: io::Error,
    },
    /// A mistake of the caller: the entry has an answer, or is another replica's.
    #[error("entry {0} of the batch is answered twice; please report this")]
    Twice(u64),
}

impl Error {
    pub(crate) fn io<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Error::Io { path: path.display().to_string(), action, source }
    }
}

//! Reasons for which a file is no result that can be read, each as one sentence.

use std::io;
use std::path::PathBuf;

use super::run_result::SCHEMA_VERSION;

/// Reason for refusing a file or directory. Messages name it, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refuses to open or read it.
    #[error("`{path}` cannot be read: {source}; name the results-dir of a job that has ended, or its result.json")]
    Unreadable {
        /// File or directory, as it was named.
        path: String,
        /// Reason of the system.
        source: io::Error,
    },
    /// A directory without the file of a result.
    #[error(
        "`{0}` holds neither a result.json nor a sweep.json; name the results-dir of a job that has ended, or wait for its end"
    )]
    NoResult(String),
    /// A socket, a device, or a directory in place of a file.
    #[error("`{0}` is not a file; name the results-dir of a job that has ended, or its result.json")]
    NotAFile(String),
    /// More than such a file has.
    #[error(
        "`{path}` has more than {most} {what}, the limit for such a file; another program has written it, or it is damaged"
    )]
    TooLarge {
        /// File that is too large.
        path: String,
        /// Largest number of them.
        most: u64,
        /// Unit of the limit.
        what: &'static str,
    },
    /// Text that no parser of JSON takes.
    #[error("`{path}` cannot be parsed as JSON: {source}; it is damaged, or no result of flashjob")]
    NotJson {
        /// The file, with the line of a file of lines.
        path: String,
        /// Reason of the parser.
        source: serde_json::Error,
    },
    /// JSON without the key that all results have.
    #[error("`{0}` is JSON, but no result of flashjob: it has no `schema_version`; name the result.json of a job")]
    Foreign(String),
    /// Written by a version of flashjob whose keys have other meanings.
    #[error(
        "`{path}` has schema_version {found}, and flashjob {} reads {SCHEMA_VERSION}; use the version of flashjob that wrote it, \
         or run the job again",
        env!("CARGO_PKG_VERSION")
    )]
    OtherVersion {
        /// File of another version.
        path: String,
        /// Version that it names.
        found: u64,
    },
    /// JSON whose keys or values are not those of a result.
    #[error(
        "`{path}` cannot be read as a result of flashjob: {reason}; it is damaged, or another program has changed it"
    )]
    Content {
        /// The file, with the line of a file of lines.
        path: String,
        /// The first deviation, as a clause.
        reason: String,
    },
}

impl Error {
    /// A refusal by the parser: of the text, or of what it says.
    pub(super) fn parsing(path: &str, source: serde_json::Error) -> Self {
        let path = path.to_owned();
        match source.is_data() {
            true => Error::Content { path, reason: source.to_string() },
            false => Error::NotJson { path, source },
        }
    }

    pub(super) fn unreadable(path: &std::path::Path, source: io::Error) -> Self {
        Error::Unreadable { path: shown(path), source }
    }
}

/// A path in a sentence.
pub(super) fn shown(path: &std::path::Path) -> String {
    PathBuf::from(path).display().to_string()
}

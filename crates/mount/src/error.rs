//! Errors of mounting and copying.

use std::path::PathBuf;

use super::names::HiddenObjects;
use super::source::Fault;
use flashjob_bucket as bucket;

/// Reasons why objects could not become files. Each message says what was attempted, why it failed and what to do next;
/// none contains a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount location cannot be used.
    #[error("{}", .0.join("; "))]
    Location(Vec<String>),
    /// The bucket could not be listed.
    #[error(transparent)]
    Bucket(#[from] bucket::Error),
    /// An `include` path that no object has.
    #[error(
        "include names `{0}`, but the bucket has no object of that name and none below it; \
         include takes whole directories or objects, and names are case-sensitive"
    )]
    NothingIncluded(String),
    /// More files and directories than an index has room for.
    #[error(
        "the objects would be {needed} files and directories, and {limit} are the limit; name those that are wanted with \
         include, or leave others out with exclude"
    )]
    TooManyFiles {
        /// Number of files and directories.
        needed: usize,
        /// Limit for both together.
        limit: usize,
    },
    /// An object PAR whose object cannot be a file.
    #[error("the PAR is for an object that cannot be a file ({0}); use a PAR for the bucket or for a prefix")]
    NoFile(HiddenObjects),
    /// `mount-mode=fuse` where FUSE is refused.
    #[error("cannot mount `{}`: {reason}; use mount-mode=auto or copy to download the files instead", location.display())]
    FuseRefused {
        /// Mount location.
        location: PathBuf,
        /// The kernel's refusal.
        reason: String,
    },
    /// The files are larger than the volume.
    #[error(
        "the objects hold {needed_bytes} bytes and cannot be copied to `{}`, which may take {limit_bytes} \
         ({limit}); raise it, or narrow the input with include or exclude",
        location.display()
    )]
    TooLarge {
        /// Mount location.
        location: PathBuf,
        /// Bytes of all files, or of those still missing.
        needed_bytes: u64,
        /// Bytes that fit.
        limit_bytes: u64,
        /// Name of the limit.
        limit: &'static str,
    },
    /// A local file or directory could not be written.
    #[error("cannot {action} `{}`: {source}; check the volume at the mount location", path.display())]
    Local {
        /// Attempted action, as a verb.
        action: &'static str,
        /// Path of the file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// An object could not be downloaded.
    #[error("cannot copy object `{object}`: {fault}")]
    Object {
        /// Name of the object.
        object: String,
        /// Fault of the read.
        fault: Fault,
    },
    /// An object arrived with the wrong MD5.
    #[error(
        "object `{0}` arrived with another MD5 than the bucket lists for it; \
         start again, and if it happens again upload the object again"
    )]
    Checksum(String),
    /// The mount is there but cannot be taken away.
    #[error("cannot unmount `{}`: {source}; unmount it by hand with `umount -l`", location.display())]
    Unmount {
        /// Mount location.
        location: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The system starts no further thread.
    #[error("cannot start the mount's threads: {0}; raise the container's limit on processes")]
    Threads(std::io::Error),
    /// The job was asked to stop.
    #[error("mounting was cancelled")]
    Cancelled,
}

impl Error {
    /// Turns an I/O error on a local path into one that says what was attempted.
    pub(super) fn local(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Local { action, path, source }
    }
}

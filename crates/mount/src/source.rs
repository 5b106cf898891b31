//! The interface between files and the source of their bytes.
//!
//! The block map and the copy know a [`BlockSource`]: a bucket, the disk cache in front of one, or a fake of a test that
//! needs no network.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use rustix::io::Errno;

use flashjob_bucket::{Bucket, Error, ErrorKind, Object};

/// A read in progress.
pub type Reading<'a> = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>>;

/// Receives bytes as they arrive, in order, each once.
pub type Sink<'a> = dyn FnMut(&[u8]) + Send + 'a;

/// A source of the bytes of objects.
pub trait BlockSource: Send + Sync + 'static {
    /// Passes `range` of exactly the listed version of `object` to `sink`, or fails. Implementations retry; callers do
    /// not.
    fn read<'a>(&'a self, object: &'a Object, range: Range<u64>, sink: &'a mut Sink<'a>) -> Reading<'a>;

    /// A file on a local disk that holds all of the listed version of `object`, checked, where there is one. May wait for
    /// that disk, and for nothing else.
    fn whole(&self, _object: &Object) -> Option<Arc<File>> {
        None
    }

    /// Ends the source: what it still has to write, it writes now.
    fn end(&self) {}

    /// Number of throttling answers so far.
    fn throttled(&self) -> u64 {
        0
    }

    /// Number of reads that make progress at a time. Further reads only wait, holding their memory.
    fn connections(&self) -> usize {
        usize::MAX
    }
}

impl BlockSource for Bucket {
    fn read<'a>(&'a self, object: &'a Object, range: Range<u64>, sink: &'a mut Sink<'a>) -> Reading<'a> {
        Box::pin(async move { self.get_into(object, range, sink).await.map_err(Fault::from) })
    }

    fn throttled(&self) -> u64 {
        Bucket::throttled(self)
    }

    fn connections(&self) -> usize {
        Bucket::connections(self)
    }
}

/// Kinds of faults, as far as a file system tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The bucket refuses access, although it was granted before.
    Denied,
    /// The object was listed and is gone.
    Missing,
    /// The object is no longer the version that was listed.
    Changed,
    /// No bytes came within the storage timeout, or none that make sense.
    Unreachable,
    /// The mount is coming down.
    Closed,
}

impl FaultKind {
    /// The errno of a system call that needed the bytes.
    pub fn errno(self) -> Errno {
        match self {
            FaultKind::Denied => Errno::ACCESS,
            FaultKind::Missing | FaultKind::Changed => Errno::STALE,
            FaultKind::Unreachable | FaultKind::Closed => Errno::IO,
        }
    }
}

/// A read that failed. Cheap to clone: every reader that waited gets the same one.
#[derive(Clone, PartialEq, Eq)]
pub struct Fault {
    kind: FaultKind,
    message: Arc<str>,
}

impl Fault {
    /// Creates a fault with the sentence that explains it.
    pub fn new(kind: FaultKind, message: impl Into<Arc<str>>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(super) fn closed() -> Self {
        Self::new(FaultKind::Closed, "the mount is coming down")
    }

    /// The kind of this fault.
    pub fn kind(&self) -> FaultKind {
        self.kind
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::ParNoLongerWorks
            | ErrorKind::OutsidePrefix
            | ErrorKind::ListingNotAllowed
            | ErrorKind::WritingNotAllowed => FaultKind::Denied,
            ErrorKind::NotFound => FaultKind::Missing,
            ErrorKind::Changed => FaultKind::Changed,
            ErrorKind::Throttled
            | ErrorKind::ServerFailed
            | ErrorKind::Unreachable
            | ErrorKind::Protocol
            | ErrorKind::InvalidRequest
            | ErrorKind::TooManyObjects
            | ErrorKind::LocalFile => FaultKind::Unreachable,
        };
        Self::new(kind, error.to_string())
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl From<Fault> for std::io::Error {
    fn from(fault: Fault) -> Self {
        let kind = std::io::Error::from(fault.kind.errno()).kind();
        std::io::Error::new(kind, fault)
    }
}

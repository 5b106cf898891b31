//! A Pre-Authenticated Request becomes `list`, `head`, ranged `get` and `put`, with typed errors.
//!
//! One retry policy ([`RetryPolicy`]), one interpretation of the service's answers (`answer`), one place where a message
//! is made and its token removed (`error`). This crate knows nothing of file systems or models, never logs, and never
//! guesses: bytes that it returns come from one version of one object, or the call fails. Facts about the service are from
//! Oracle's documentation of Object Storage and its `oci` SDK.

mod answer;
mod content_range;
mod digest;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod listing;
mod multipart;
mod object;
mod probe;
mod rate;
mod read;
mod retry;
mod transport;
mod versions;
mod write;

use std::sync::Arc;

pub use error::{Error, ErrorKind};
pub use object::{Object, name_fault};
pub use retry::RetryPolicy;

use flashjob_config::Par;
use flashjob_event::Events;
use transport::Transport;

/// Default length of the parts of a multipart upload, in bytes: large enough that a request's latency does not count,
/// small enough that a few of them fit in memory.
const PART_BYTES: u64 = 16 << 20;

/// Access to a bucket through a PAR. Cheap to clone; all clones share connections.
#[derive(Clone, Debug)]
pub struct Bucket {
    transport: Arc<Transport>,
    part_bytes: u64,
}

impl Bucket {
    /// Prepares access to `par`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] where no HTTP client can be made on this machine.
    pub fn open(par: Par, retry: RetryPolicy, events: Events) -> Result<Self, Error> {
        Ok(Self { transport: Arc::new(Transport::new(par, retry, events)?), part_bytes: PART_BYTES })
    }

    /// The same bucket with uploads in parts of `bytes` (at least 1); a file of at most one part is sent whole.
    pub fn with_part_bytes(self, bytes: u64) -> Self {
        Self { part_bytes: bytes.max(1), ..self }
    }

    /// Most connections in use at a time.
    pub fn connections(&self) -> usize {
        self.transport.policy().connections
    }

    /// Number of throttling answers (429, 503) since [`Bucket::open`], for readers that adapt their concurrency.
    pub fn throttled(&self) -> u64 {
        self.transport.throttled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readers run on other threads: this does not compile if a future cannot be sent there.
    #[test]
    fn every_operation_can_be_spawned() {
        fn spawnable(_: impl Send) {}
        let par = Par::parse("http://localhost/p/t/n/ns/b/models/o/").unwrap();
        let bucket = Bucket::open(par, RetryPolicy::default(), Events::default()).unwrap();
        let object = Object { name: "a".into(), size_bytes: 1, etag: None, modified: None, md5: None };
        spawnable(bucket.list(""));
        spawnable(bucket.head("a"));
        spawnable(bucket.get(&object, 0..1));
        spawnable(bucket.get_into(&object, 0..1, &mut |_| {}));
        spawnable(bucket.put("a", bytes::Bytes::new()));
        spawnable(bucket.put_file("a", std::path::Path::new("a"), std::path::Path::new(".")));
        spawnable(bucket.holds("a", std::path::Path::new("a"), std::path::Path::new(".")));
    }
}

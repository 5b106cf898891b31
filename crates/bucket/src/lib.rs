//! A Pre-Authenticated Request becomes `list`, `head`, ranged `get` and `put`, with typed errors.
//!
//! One retry policy ([`RetryPolicy`]), one place that knows what the service's answers mean (`answer`), one
//! place where a message is made and its token removed (`error`). This room knows nothing of file systems or
//! models, never logs, and never guesses: bytes that it hands out come from one version of one object, or the
//! call fails. Facts of the service are Oracle's documentation of Object Storage and its `oci` SDK.

mod answer;
mod content_range;
mod digest;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod listing;
mod multipart;
mod object;
mod pace;
mod probe;
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

/// Parts of a multipart upload, unless asked otherwise: large enough that a request's latency does not count,
/// small enough that a few of them fit in memory.
const PART_BYTES: u64 = 16 << 20;

/// What a PAR gives access to. Cheap to clone; all clones share connections.
///
/// Every method may be cancelled by dropping its future.
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

    /// Connections that are used at once at most.
    pub fn connections(&self) -> usize {
        self.transport.policy().connections
    }

    /// How often the service has asked to slow down (429, 503) since [`Bucket::open`], for readers that adapt
    /// how much they ask for at once.
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

//! Uploads in parts, several at once, visible only when all of them are there.
//!
//! The protocol of PARs (Oracle, "Working with Pre-Authenticated Requests"): PUT of the object with
//! `opc-multipart: true` opens an upload and tells its `accessUri`; parts are PUT under it by number; POST
//! commits, DELETE aborts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use url::Url;

use super::Bucket;
use super::answer::Failure;
use super::digest::{self, Hash};
use super::error::{Error, ErrorKind};
use super::object;
use super::read::shown;
use super::retry::Attempts;
use super::transport::Transport;
use super::write::{Part, explained};

/// The service's limit on the number of parts.
const MOST_PARTS: u64 = 10_000;
/// Parts in flight: with their bodies in memory, so that a retry does not read again.
const PARTS_AT_ONCE: usize = 4;
/// The answer that opens an upload holds a few names and a URL.
const LONGEST_OPENING_BYTES: usize = 64 << 10;

/// The answer that opens an upload.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Opened {
    access_uri: String,
}

impl Bucket {
    /// Uploads the `size_bytes` of `file` in parts.
    pub(super) async fn put_parts(&self, name: &str, path: &Path, file: File, size_bytes: u64) -> Result<(), Error> {
        let transport = &*self.transport;
        let attempted = |what: &str| format!("{what} {}", shown(transport, name));
        let mut attempts = Attempts::new(transport, attempted("open an upload of"));
        if let Some(fault) = object::name_fault(name) {
            return Err(attempts.fail(Failure::new(ErrorKind::InvalidRequest, fault.to_owned())));
        }
        let url = loop {
            match open(transport, name).await {
                Ok(url) => break url,
                Err(failure) => {
                    let failure = explained(transport, name, failure).await;
                    attempts.after(failure).await?;
                }
            }
        };
        let mut upload = Upload { transport: Arc::clone(&self.transport), url: Some(url) };
        let sent = async {
            let part_bytes = part_bytes(self.part_bytes, size_bytes);
            let file = Arc::new(file);
            let hashes: Vec<Hash> = stream::iter(0..size_bytes.div_ceil(part_bytes))
                .map(|index| {
                    let attempts = Attempts::new(transport, attempted(&format!("write part {} of", index + 1)));
                    let length = part_bytes.min(size_bytes - index * part_bytes);
                    upload.send(attempts, index + 1, part(Arc::clone(&file), path, index * part_bytes, length))
                })
                .buffered(PARTS_AT_ONCE)
                .try_collect()
                .await?;
            let attempts = Attempts::new(transport, attempted("commit the upload of"));
            upload.commit(attempts, name, size_bytes, &digest::of_parts(&hashes)).await
        };
        match sent.await {
            Ok(()) => {
                upload.url = None;
                Ok(())
            }
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }
}

/// Length of the parts of `size_bytes`, which should be `wanted`.
pub(super) fn part_bytes(wanted: u64, size_bytes: u64) -> u64 {
    wanted.max(size_bytes.div_ceil(MOST_PARTS))
}

/// Opens an upload and gives its URL, which ends in `/`.
async fn open(transport: &Transport, name: &str) -> Result<String, Failure> {
    let request = transport.client().put(transport.par().object_url(name)).header("opc-multipart", "true");
    let mut reply = transport.send_body(request, bytes::Bytes::new()).await?.success().await?;
    let body = reply.collect(LONGEST_OPENING_BYTES).await?;
    let protocol = |cause: &str| Failure::protocol(cause).with_request_id(reply.headers());
    let opened: Opened =
        serde_json::from_slice(&body).map_err(|_| protocol("the answer that opens an upload has no accessUri"))?;
    let path = opened.access_uri;
    let url = format!("{}{path}", transport.par().origin());
    // A path on the same host, which a URL parser leaves as it is: bytes and token go nowhere else.
    let stays = path.starts_with("/p/") && Url::parse(&url).is_ok_and(|parsed| parsed.path() == path);
    if !stays {
        return Err(protocol("the upload's accessUri is not a path of this service"));
    }
    Ok(if url.ends_with('/') { url } else { format!("{url}/") })
}

/// Reads and hashes one part, off the async threads.
async fn part(file: Arc<File>, path: &Path, offset: u64, length: u64) -> Result<Part, Failure> {
    let read = tokio::task::spawn_blocking(move || -> io::Result<Part> {
        let mut body = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut body, offset)?;
        Ok(Part::new(body.into()))
    });
    let read = read.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    read.map_err(|error| {
        Failure::new(ErrorKind::LocalFile, format!("`{}` cannot be read at byte {offset}: {error}", path.display()))
    })
}

/// An upload that is open. Dropped before it is committed, it is aborted in the background.
struct Upload {
    transport: Arc<Transport>,
    /// `None` once there is nothing to abort.
    url: Option<String>,
}

impl Upload {
    fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }

    async fn send(
        &self,
        mut attempts: Attempts<'_>,
        number: u64,
        part: impl Future<Output = Result<Part, Failure>>,
    ) -> Result<Hash, Error> {
        let part = part.await.map_err(|failure| attempts.fail(failure))?;
        let url = format!("{}{number}", self.url());
        loop {
            match part.send(&self.transport, self.transport.client().put(&url)).await {
                Ok(_) => return Ok(part.hash),
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }

    /// Makes the parts an object, whose hash must be `hash`.
    async fn commit(&self, mut attempts: Attempts<'_>, name: &str, size_bytes: u64, hash: &str) -> Result<(), Error> {
        let transport = &*self.transport;
        loop {
            let request = transport.client().post(self.url());
            let reply = async { transport.send_body(request, bytes::Bytes::new()).await?.success().await };
            let failure = match reply.await {
                Ok(reply) => {
                    let stored = object::text(reply.headers(), "opc-multipart-md5");
                    if stored.is_none_or(|stored| stored == hash) {
                        return Ok(());
                    }
                    let failure = Failure::protocol("the service put other parts together than were sent");
                    return Err(attempts.fail(failure.with_request_id(reply.headers())));
                }
                Err(failure) => failure,
            };
            // The upload is gone if an earlier try got through and only its answer was lost.
            let maybe_done = attempts.failed() > 0 && failure.kind == ErrorKind::NotFound;
            if maybe_done && self.is_there(name, size_bytes).await {
                return Ok(());
            }
            attempts.after(failure).await?;
        }
    }

    async fn is_there(&self, name: &str, size_bytes: u64) -> bool {
        let bucket = Bucket { transport: Arc::clone(&self.transport), part_bytes: 1 };
        bucket.head(name).await.is_ok_and(|object| object.size_bytes == size_bytes)
    }

    /// Gives the parts up.
    async fn abort(&mut self) {
        if let Some(url) = self.url.take() {
            give_up(&self.transport, &url).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(url) = self.url.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let transport = Arc::clone(&self.transport);
            runtime.spawn(async move { give_up(&transport, &url).await });
        }
    }
}

/// Asks for the upload at `url` to be dropped. A few tries, as a part that was broken off may take the connection with
/// it; then best effort is over, and the service drops uploads that are never committed.
async fn give_up(transport: &Transport, url: &str) {
    for _ in 0..3 {
        if transport.send(transport.client().delete(url)).await.is_ok() {
            return;
        }
    }
}

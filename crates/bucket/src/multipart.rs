//! Uploads in parts, several at once, visible only when all of them are there.
//!
//! The protocol of PARs (Oracle, "Working with Pre-Authenticated Requests"): PUT of the object with
//! `opc-multipart: true` opens an upload and tells its `accessUri`; parts are PUT under it by number; POST
//! commits, DELETE aborts. What a process that ends early has sent is left to a later one (`record`).

mod record;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
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
use flashjob_config::Par;
use flashjob_event::Fact;
use record::{Begun, Record};

/// Most parts of an upload: the service's limit.
const MOST_PARTS: u64 = 10_000;
/// Parts in flight, with their bodies in memory, so that a retry need not read the file again.
const PARTS_AT_ONCE: usize = 4;
/// Longest answer to the opening of an upload, in bytes: a few names and a URL.
const LONGEST_OPENING_BYTES: usize = 64 << 10;

/// Answer to the opening of an upload.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Opened {
    access_uri: String,
}

/// The file to send and its division into parts.
struct Plan<'a> {
    name: &'a str,
    path: &'a Path,
    file: Arc<File>,
    size_bytes: u64,
    part_bytes: u64,
}

impl Plan<'_> {
    /// Numbers of all parts, from 1 on.
    fn parts(&self) -> RangeInclusive<u64> {
        1..=self.size_bytes.div_ceil(self.part_bytes)
    }

    /// Reads and hashes part `number`, off the async threads.
    async fn part(&self, number: u64) -> Result<Part, Failure> {
        // Part numbers begin with 1.
        let offset = (number - 1) * self.part_bytes;
        let length = self.part_bytes.min(self.size_bytes - offset);
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || -> io::Result<Part> {
            let mut body = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            file.read_exact_at(&mut body, offset)?;
            Ok(Part::new(body.into()))
        });
        let read = read.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        read.map_err(|error| {
            let path = self.path.display();
            Failure::new(ErrorKind::LocalFile, format!("`{path}` cannot be read at byte {offset}: {error}"))
        })
    }
}

impl Bucket {
    /// Uploads the `size_bytes` of `file` in parts. The directory `records` keeps a record with which a later process
    /// can resume.
    pub(super) async fn put_parts(
        &self,
        name: &str,
        path: &Path,
        file: File,
        size_bytes: u64,
        records: &Path,
    ) -> Result<(), Error> {
        let transport = &self.transport;
        let plan =
            Plan { name, path, file: Arc::new(file), size_bytes, part_bytes: part_bytes(self.part_bytes, size_bytes) };
        // An upload of an earlier process is resumed first. If that fails for good, a new upload is opened below.
        if let Some(upload) = Upload::left_behind(transport, &plan, records).await? {
            match upload.finish(&plan).await {
                // The service no longer knows the upload, or not for this PAR: that is no failure of this process.
                Err(error) if !error.kind().may_pass() || error.kind() == ErrorKind::ParNoLongerWorks => {}
                ended => return ended,
            }
        }
        Upload::open(transport, &plan, records).await?.finish(&plan).await
    }

    /// Name of the file that records an upload to the object called `name` while it is open.
    pub fn record_name(&self, name: &str) -> String {
        record::file_name(self.transport.par(), name)
    }

    /// Aborts an upload to the object called `name` that an earlier process has left, if there is one.
    pub(super) async fn drop_upload(&self, name: &str, records: &Path) {
        let par = self.transport.par();
        if let Some((record, begun, _)) = Record::find(&record::place(records, par, name)) {
            if let Ok(url) = address(par, &par.path_behind_token(&begun.behind_token)) {
                give_up(&self.transport, &url).await;
            }
            record.remove();
        }
    }
}

/// Length of the parts for `size_bytes`: `wanted`, or more where that would make too many parts.
pub(super) fn part_bytes(wanted: u64, size_bytes: u64) -> u64 {
    wanted.max(size_bytes.div_ceil(MOST_PARTS))
}

/// Opens an upload and returns the path of its URL.
async fn open(transport: &Transport, name: &str) -> Result<String, Failure> {
    let request = transport.client().put(transport.par().object_url(name)).header("opc-multipart", "true");
    let mut reply = transport.send_body(request, bytes::Bytes::new()).await?.success().await?;
    let body = reply.collect(LONGEST_OPENING_BYTES).await?;
    let protocol = |cause: &str| Failure::protocol(cause).with_request_id(reply.headers());
    let opened: Opened =
        serde_json::from_slice(&body).map_err(|_| protocol("the answer that opens an upload has no accessUri"))?;
    address(transport.par(), &opened.access_uri).map_err(protocol)?;
    Ok(opened.access_uri)
}

/// The URL of the upload at `path`, ending in `/`. The path must stay on the same host and be in normal form, so that
/// bytes and token go nowhere else.
fn address(par: &Par, path: &str) -> Result<String, &'static str> {
    let url = format!("{}{path}", par.origin());
    // Compared after parsing: `..`, backslashes and encoded hosts change in normalisation and are refused.
    let stays = path.starts_with("/p/") && Url::parse(&url).is_ok_and(|parsed| parsed.path() == path);
    if !stays {
        return Err("the upload's accessUri is not a path of this service");
    }
    Ok(if url.ends_with('/') { url } else { format!("{url}/") })
}

/// An open upload. If dropped before it is committed, it is left to a later process if it has a record, and else
/// aborted in the background.
struct Upload {
    transport: Arc<Transport>,
    url: String,
    /// Parts that an earlier process has sent, with their hashes.
    there: BTreeMap<u64, Hash>,
    end: End,
}

/// Action for an upload that ends without being committed.
enum End {
    /// Leave it to a later process.
    Leave(Record),
    /// Abort it, as no process could resume it.
    Abort,
    /// None: it is committed or aborted.
    Nothing,
}

impl Upload {
    /// The upload that an earlier process has left, if it was of this very file. One of another file is aborted.
    async fn left_behind(transport: &Arc<Transport>, plan: &Plan<'_>, records: &Path) -> Result<Option<Self>, Error> {
        let par = transport.par();
        let Some((record, begun, there)) = Record::find(&record::place(records, par, plan.name)) else {
            return Ok(None);
        };
        let Ok(url) = address(par, &par.path_behind_token(&begun.behind_token)) else {
            record.remove();
            return Ok(None);
        };
        let Begun { object, size_bytes, part_bytes, .. } = begun;
        let mut same = (object.as_str(), size_bytes, part_bytes) == (plan.name, plan.size_bytes, plan.part_bytes);
        // Every part that was sent is hashed again: the file may have changed between the processes, and the object
        // must have the bytes of one file.
        for (number, hash) in &there {
            same = same && plan.parts().contains(number) && {
                let attempts = Attempts::new(transport, attempted(transport, "go on with the upload of", plan.name));
                plan.part(*number).await.map_err(|failure| attempts.fail(failure))?.hash == *hash
            };
        }
        if !same {
            give_up(transport, &url).await;
            record.remove();
            return Ok(None);
        }
        state_opened(transport, plan, there.len(), None);
        Ok(Some(Self { transport: Arc::clone(transport), url, there, end: End::Leave(record) }))
    }

    /// Opens a new upload.
    async fn open(transport: &Arc<Transport>, plan: &Plan<'_>, records: &Path) -> Result<Self, Error> {
        let mut attempts = Attempts::new(transport, attempted(transport, "open an upload of", plan.name));
        if let Some(fault) = object::name_fault(plan.name) {
            return Err(attempts.fail(Failure::new(ErrorKind::InvalidRequest, fault.to_owned())));
        }
        let path = loop {
            match open(transport, plan.name).await {
                Ok(path) => break path,
                Err(failure) => {
                    let failure = explained(transport, plan.name, failure).await;
                    attempts.after(failure).await?;
                }
            }
        };
        let par = transport.par();
        let url = address(par, &path).map_err(|cause| attempts.fail(Failure::protocol(cause)))?;
        // Without a record the upload still works; it is merely aborted when this process ends early.
        let recorded = match par.behind_token(&path) {
            None => Err("its address has a token of its own, a secret that is not written to a disk"),
            Some(rest) => {
                let Plan { size_bytes, part_bytes, .. } = *plan;
                let begun =
                    Begun { object: plan.name.to_owned(), behind_token: rest.to_owned(), size_bytes, part_bytes };
                Record::begin(&record::place(records, par, plan.name), &begun)
                    .map_err(|_| "its record cannot be written, or another process sends the same")
            }
        };
        state_opened(transport, plan, 0, recorded.as_ref().err().copied());
        let end = recorded.map_or(End::Abort, End::Leave);
        Ok(Self { transport: Arc::clone(transport), url, there: BTreeMap::new(), end })
    }

    /// Sends the missing parts and commits. After a permanent failure the parts are aborted; otherwise they stay for a
    /// later process.
    async fn finish(mut self, plan: &Plan<'_>) -> Result<(), Error> {
        let sent = async {
            let hashes: Vec<Hash> = stream::iter(plan.parts())
                .map(|number| self.send(plan, number))
                // Ordered: the hash of the object is made of the parts' hashes by number.
                .buffered(PARTS_AT_ONCE)
                .try_collect()
                .await?;
            self.commit(plan, &digest::of_parts(&hashes)).await
        };
        let result = sent.await;
        let end = std::mem::replace(&mut self.end, End::Nothing);
        match (&result, end) {
            // Only a failure that may pass leaves the parts: others would fail again in the next process.
            (Err(error), End::Leave(record)) if error.kind().may_pass() => self.end = End::Leave(record),
            (Err(_), end) => {
                give_up(&self.transport, &self.url).await;
                end.forget();
            }
            (Ok(()), end) => end.forget(),
        }
        result
    }

    /// Sends part `number`, unless an earlier process has sent it.
    async fn send(&self, plan: &Plan<'_>, number: u64) -> Result<Hash, Error> {
        if let Some(hash) = self.there.get(&number) {
            return Ok(*hash);
        }
        let transport = &*self.transport;
        let what = format!("write part {number} of");
        let mut attempts = Attempts::new(transport, attempted(transport, &what, plan.name));
        let part = plan.part(number).await.map_err(|failure| attempts.fail(failure))?;
        let url = format!("{}{number}", self.url);
        loop {
            match part.send(transport, transport.client().put(&url)).await {
                Ok(_) => break,
                Err(failure) => attempts.after(failure).await?,
            }
        }
        // Recorded after the answer: a record may lack a part that has arrived, never the reverse.
        if let End::Leave(record) = &self.end {
            record.arrived(number, part.hash);
        }
        Ok(part.hash)
    }

    /// Commits the parts; the object's hash must be `hash`.
    async fn commit(&self, plan: &Plan<'_>, hash: &str) -> Result<(), Error> {
        let transport = &*self.transport;
        let mut attempts = Attempts::new(transport, attempted(transport, "commit the upload of", plan.name));
        loop {
            let request = transport.client().post(&self.url);
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
            // After a retry, a missing upload may mean that an earlier attempt succeeded and only its answer was lost.
            let maybe_done = attempts.failed() > 0 && failure.kind == ErrorKind::NotFound;
            if maybe_done && self.is_there(plan).await {
                return Ok(());
            }
            attempts.after(failure).await?;
        }
    }

    async fn is_there(&self, plan: &Plan<'_>) -> bool {
        let bucket = Bucket { transport: Arc::clone(&self.transport), part_bytes: 1 };
        bucket.head(plan.name).await.is_ok_and(|object| object.size_bytes == plan.size_bytes)
    }
}

impl End {
    /// Removes the record of an upload that is committed or aborted.
    fn forget(self) {
        if let Self::Leave(record) = self {
            record.remove();
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Drop cannot await: the abort runs in the background, if the runtime still exists.
        if matches!(self.end, End::Abort)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (transport, url) = (Arc::clone(&self.transport), std::mem::take(&mut self.url));
            runtime.spawn(async move { give_up(&transport, &url).await });
        }
    }
}

fn attempted(transport: &Transport, what: &str, name: &str) -> String {
    format!("{what} {}", shown(transport, name))
}

fn state_opened(transport: &Transport, plan: &Plan<'_>, there: usize, not_resumable: Option<&'static str>) {
    let parts = *plan.parts().end();
    transport.events().emit(Fact::UploadOpened { parts, parts_there: there as u64, not_resumable });
}

/// Aborts the upload at `url`. A few attempts, since a part that was cancelled may take the connection with it; what is
/// left then is for the bucket's life-cycle rules.
async fn give_up(transport: &Transport, url: &str) {
    for _ in 0..3 {
        if transport.send(transport.client().delete(url)).await.is_ok() {
            return;
        }
    }
}

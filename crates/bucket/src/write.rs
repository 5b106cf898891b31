//! Objects written in one request, and the choice between that and an upload in parts.
//!
//! Each body carries its MD5, which the service checks before it keeps anything: an object appears whole and
//! right, or not at all.

use std::path::Path;

use bytes::Bytes;
use reqwest::RequestBuilder;

use super::Bucket;
use super::answer::Failure;
use super::digest::{self, Hash};
use super::error::{Error, ErrorKind};
use super::multipart;
use super::object;
use super::probe;
use super::read::shown;
use super::retry::Attempts;
use super::transport::{Reply, Transport};
use flashjob_event::Fact;

impl Bucket {
    /// Writes `body` as the object called `name`, replacing what was there.
    ///
    /// # Errors
    /// [`ErrorKind::WritingNotAllowed`] where the PAR reads but may not write; see [`ErrorKind`].
    pub async fn put(&self, name: &str, body: Bytes) -> Result<(), Error> {
        let transport = &*self.transport;
        let mut attempts = Attempts::new(transport, format!("write {}", shown(transport, name)));
        if let Some(fault) = object::name_fault(name) {
            return Err(attempts.fail(Failure::new(ErrorKind::InvalidRequest, fault.to_owned())));
        }
        // Hashed once for all attempts.
        let part = Part::new(body);
        let url = transport.par().object_url(name);
        loop {
            match part.send(transport, transport.client().put(&url)).await {
                Ok(_) => return Ok(()),
                Err(failure) => {
                    let failure = explained(transport, name, failure).await;
                    attempts.after(failure).await?;
                }
            }
        }
    }

    /// Writes the file at `path` as the object called `name`; in parts where it is longer than one part.
    ///
    /// The folder `records` keeps, without the PAR's token, what another process needs to go on where this one ends early: not
    /// by dropping the future, nor with an error that may pass, are parts lost that have arrived. Errors that do not pass abort
    /// the upload, as does everything where the folder takes no record or the service's address has another token.
    ///
    /// # Errors
    /// [`ErrorKind::LocalFile`] where the file cannot be read or changes meanwhile; as [`Bucket::put`].
    pub async fn put_file(&self, name: &str, path: &Path, records: &Path) -> Result<(), Error> {
        let unreadable = |error: std::io::Error| {
            let cause = format!("`{}` cannot be read: {error}", path.display());
            let attempted = format!("write {}", shown(&self.transport, name));
            Attempts::new(&self.transport, attempted).fail(Failure::new(ErrorKind::LocalFile, cause))
        };
        let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        let size_bytes = file.metadata().await.map_err(unreadable)?.len();
        if size_bytes > self.part_bytes {
            let file = file.into_std().await;
            return self.put_parts(name, path, file, size_bytes, records).await;
        }
        self.drop_upload(name, records).await;
        self.put(name, tokio::fs::read(path).await.map_err(unreadable)?.into()).await
    }

    /// Returns whether the object called `name` has the content of the file at `path`, as far as the service tells; the
    /// record of an upload in `records` is removed then. False also if this PAR may not look.
    pub async fn holds(&self, name: &str, path: &Path, records: &Path) -> Result<bool, Error> {
        let transport = &*self.transport;
        let mut attempts = Attempts::new(transport, format!("look up {}", shown(transport, name)));
        let stored = loop {
            let request = transport.client().head(transport.par().object_url(name));
            let failure = match async { transport.send(request).await?.success().await }.await {
                Ok(reply) => {
                    let hash = |header| object::text(reply.headers(), header).map(str::to_owned);
                    break hash("content-md5").or_else(|| hash("opc-multipart-md5"));
                }
                Err(failure) => failure,
            };
            if failure.kind == ErrorKind::NotFound || failure.is_denied() {
                break None;
            }
            attempts.after(failure).await?;
        };
        let Some(stored) = stored else { return Ok(false) };
        let (owned, part_bytes) = (path.to_owned(), self.part_bytes);
        // Hashing gigabytes would block the async threads.
        let hashed = tokio::task::spawn_blocking(move || {
            let size_bytes = std::fs::metadata(&owned)?.len();
            digest::of_file(&owned, multipart::part_bytes(part_bytes, size_bytes))
        });
        let hashed = hashed.await;
        let hashed = hashed.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
        let hashed = hashed.map_err(|error| {
            attempts.fail(Failure::new(ErrorKind::LocalFile, format!("`{}` cannot be read: {error}", path.display())))
        })?;
        if hashed == stored {
            self.drop_upload(name, records).await;
        }
        Ok(hashed == stored)
    }
}

/// A body with its MD5.
pub(super) struct Part {
    body: Bytes,
    pub(super) hash: Hash,
}

impl Part {
    /// A part with the MD5 of `body`.
    pub(super) fn new(body: Bytes) -> Self {
        let hash = digest::hash(&body);
        Self { body, hash }
    }

    /// Sends the body once.
    pub(super) async fn send<'a>(
        &self,
        transport: &'a Transport,
        request: RequestBuilder,
    ) -> Result<Reply<'a>, Failure> {
        let md5 = digest::of_whole(self.hash);
        let request = request.header("content-md5", &md5);
        // Content-MD5 has the service verify what it received, and the answer's hash verifies what it stored.
        let reply = transport.send_body(request, self.body.clone()).await?.success().await?;
        if object::text(reply.headers(), "opc-content-md5").is_some_and(|stored| stored != md5) {
            return Err(
                Failure::protocol("the service stored another content than was sent").with_request_id(reply.headers())
            );
        }
        transport.events().emit(Fact::BucketWritten { bytes: self.body.len() as u64 });
        Ok(reply)
    }
}

/// Replaces the failure where the PAR works and may not write.
pub(super) async fn explained(transport: &Transport, name: &str, failure: Failure) -> Failure {
    if failure.is_denied() && probe::reads(transport, name).await {
        Failure { kind: ErrorKind::WritingNotAllowed, ..failure }
    } else {
        failure
    }
}

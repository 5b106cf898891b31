//! Bytes of one version of one object: HEAD and ranged GET.
//!
//! A range is asked for with If-Match, and every head of an answer is checked against what was asked before a
//! byte of its body is used. A body that stops early is resumed at the byte reached, still of that version.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, IF_MATCH, RANGE};

use super::Bucket;
use super::answer::Failure;
use super::content_range::ContentRange;
use super::error::{Error, ErrorKind};
use super::object::{self, Object};
use super::retry::Attempts;
use super::transport::Transport;

/// Largest allocation before the first byte arrives, in bytes; a listed size is only a claim.
const LARGEST_FIRST_ALLOCATION_BYTES: u64 = 64 << 20;
/// Bytes after which an attempt counts as progress; a quarter of the request does, too. With less, a service that
/// breaks off after every byte would be asked for ever without a pause.
const USEFUL_BYTES: u64 = 1 << 20;

impl Bucket {
    /// Looks up the object called `name` by HEAD.
    pub async fn head(&self, name: &str) -> Result<Object, Error> {
        let transport = &*self.transport;
        let mut attempts = Attempts::new(transport, format!("look up {}", shown(transport, name)));
        if let Some(fault) = object::name_fault(name) {
            return Err(attempts.fail(Failure::new(ErrorKind::InvalidRequest, fault.to_owned())));
        }
        loop {
            match head_once(transport, name).await {
                Ok(object) => return Ok(object),
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }

    /// The bytes `range` of `object`, exactly as many, all of the version that `object` describes.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] where the object is another version by now; see [`ErrorKind`].
    pub async fn get(&self, object: &Object, range: Range<u64>) -> Result<Bytes, Error> {
        // Grown as bytes arrive beyond that.
        let length = range.end.saturating_sub(range.start).min(LARGEST_FIRST_ALLOCATION_BYTES);
        let mut bytes = BytesMut::with_capacity(length as usize);
        self.get_into(object, range, &mut |piece| bytes.extend_from_slice(piece)).await?;
        Ok(bytes.freeze())
    }

    /// Like [`Bucket::get`], passing bytes to `sink` as they arrive, in order and each byte once.
    pub async fn get_into(
        &self,
        object: &Object,
        range: Range<u64>,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<(), Error> {
        let transport = &*self.transport;
        let attempted = format!("read bytes {}..{} of {}", range.start, range.end, shown(transport, &object.name));
        let mut attempts = Attempts::new(transport, attempted);
        let invalid = |cause: String| Failure::new(ErrorKind::InvalidRequest, cause);
        if let Some(fault) = object::name_fault(&object.name) {
            return Err(attempts.fail(invalid(fault.to_owned())));
        }
        if range.start > range.end || range.end > object.size_bytes {
            return Err(attempts.fail(invalid(format!("the object is {} bytes long", object.size_bytes))));
        }
        let mut read = Reading { object, etag: None, rest: range, sink };
        // Each round asks for what is missing: a body that broke off is resumed at the byte that was reached, of the
        // same version.
        while !read.rest.is_empty() {
            let (before, asked) = (read.rest.start, read.rest.end - read.rest.start);
            if let Err(failure) = read.once(transport).await {
                // Only useful attempts restart the deadline, or a service that breaks off early would be retried
                // without end.
                if read.rest.start - before >= USEFUL_BYTES.min(asked.div_ceil(4)) {
                    attempts.progressed();
                }
                attempts.after(failure).await?;
            }
        }
        Ok(())
    }
}

/// One HEAD. An error's answer to HEAD has no body and so no code: a GET of one byte tells the cause.
async fn head_once(transport: &Transport, name: &str) -> Result<Object, Failure> {
    let url = transport.par().object_url(name);
    let failure = {
        let mut reply = transport.send(transport.client().head(&url)).await?;
        if reply.status().is_success() {
            let object = Object::from_headers(name, reply.headers());
            return object.map_err(|lack| Failure::protocol(lack).with_request_id(reply.headers()));
        }
        reply.failure().await
    };
    if !matches!(failure.kind, ErrorKind::NotFound | ErrorKind::ParNoLongerWorks) {
        return Err(failure);
    }
    let mut reply = transport.send(transport.client().get(&url).header(RANGE, "bytes=0-0")).await?;
    let told = if reply.status().is_success() { None } else { Some(reply.failure().await) };
    // 416 is the answer of an empty object: it exists, whatever HEAD said.
    match told.filter(|told| told.kind != ErrorKind::Changed) {
        Some(told) => Err(told),
        None => Err(Failure::protocol("HEAD says that it is missing, GET that it is there")),
    }
}

/// A range in transfer.
struct Reading<'a> {
    object: &'a Object,
    /// ETag to ask for: the listed one, or that of the object's first answer where the listing has none.
    etag: Option<String>,
    /// Bytes still missing.
    rest: Range<u64>,
    sink: &'a mut (dyn FnMut(&[u8]) + Send),
}

impl Reading<'_> {
    /// Requests the missing bytes once and passes on what arrives.
    async fn once(&mut self, transport: &Transport) -> Result<(), Failure> {
        let url = transport.par().object_url(&self.object.name);
        let last = self.rest.end - 1;
        self.etag = self.object.etag.clone().or_else(|| transport.versions().etag(&self.object.name));
        let mut request = transport.client().get(url).header(RANGE, format!("bytes={}-{last}", self.rest.start));
        // If-Match makes the service refuse another version: bytes of two versions must never be mixed.
        if let Some(etag) = &self.etag {
            request = request.header(IF_MATCH, etag);
        }
        let mut reply = transport.send(request).await?.success().await?;
        let is_right = self.check(reply.status(), reply.headers()).and_then(|()| match self.object.etag {
            Some(_) => Ok(()),
            // Checked again with the answer: another read may have had the first answer since this request was sent.
            None => transport.versions().hold(&self.object.name, reply.headers()).map_err(changed),
        });
        is_right.map_err(|failure| failure.with_request_id(reply.headers()))?;
        while let Some(piece) = reply.chunk().await? {
            // Without this check, surplus bytes would count as those of the next range.
            if piece.len() as u64 > self.rest.end - self.rest.start {
                return Err(Failure::protocol("the body is longer than its head says").with_request_id(reply.headers()));
            }
            reply.arrived(piece.len());
            (self.sink)(&piece);
            self.rest.start += piece.len() as u64;
        }
        if self.rest.is_empty() {
            return Ok(());
        }
        let missing = self.rest.end - self.rest.start;
        Err(Failure::unreachable("short_body", format!("the body ended {missing} bytes early"))
            .with_request_id(reply.headers()))
    }

    /// Checks that an answer's head promises exactly the missing bytes, of the right version.
    fn check(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), Failure> {
        let size = self.object.size_bytes;
        // The version first: other differences of the head follow from it, and the error should name the cause.
        match (&self.etag, &object::etag(headers)) {
            (Some(wanted), Some(sent)) if wanted != sent => {
                return Err(changed(format!("its ETag is `{sent}`, not `{wanted}`")));
            }
            // A proxy may have removed or ignored the condition.
            (Some(wanted), None) => {
                let why =
                    format!("asked for the version with ETag `{wanted}`, the answer does not say of which one it is");
                return Err(Failure::protocol(why));
            }
            _ => {}
        }
        match status {
            StatusCode::PARTIAL_CONTENT => {
                let Some(value) = object::text(headers, CONTENT_RANGE.as_str()) else {
                    return Err(Failure::protocol("the answer is 206 without Content-Range"));
                };
                let range = ContentRange::parse(value);
                // Checked before the range, which the service cuts at the end of an object that has become shorter.
                if let Some(total) = range.as_ref().and_then(|range| range.total)
                    && total != size
                {
                    return Err(changed(format!("it is {total} bytes long, not {size}")));
                }
                if range.is_none_or(|range| range.bytes != self.rest) {
                    let (first, last) = (self.rest.start, self.rest.end - 1);
                    return Err(Failure::protocol(format!(
                        "asked for bytes {first}-{last}, the answer holds `{value}`"
                    )));
                }
            }
            // A server may ignore Range: the body is the object from its first byte then.
            StatusCode::OK if self.rest == (0..size) => {}
            StatusCode::OK => return Err(Failure::protocol("the answer is the whole object, not the range asked for")),
            other => return Err(Failure::protocol(format!("the answer to a GET is {other}"))),
        }
        let asked = self.rest.end - self.rest.start;
        match object::text(headers, CONTENT_LENGTH.as_str()).map(|length| length.parse::<u64>()) {
            None => {}
            Some(Ok(length)) if length == asked => {}
            Some(_) if status == StatusCode::OK => return Err(changed(format!("it is no longer {size} bytes long"))),
            Some(_) => {
                return Err(Failure::protocol(format!("asked for {asked} bytes, the answer's length is another")));
            }
        }
        Ok(())
    }
}

/// A failure as the object is another version than the one asked for.
fn changed(cause: String) -> Failure {
    Failure::new(ErrorKind::Changed, cause)
}

/// Name of an object in messages.
pub(super) fn shown(transport: &Transport, name: &str) -> String {
    format!("object `{}` in bucket `{}`", name.escape_debug(), transport.par().bucket())
}

//! GET and HEAD of one object.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::answer::Refusal;
use crate::conditions::{self, Verdict};
use crate::content::{Opened, Version, etag_of};
use crate::faults::Kind;
use crate::store::Store;

/// Answers a GET, or a HEAD, of the object called `name`, lying where `faults` say so.
pub async fn answer(
    store: &Arc<Store>,
    bucket: &str,
    name: &str,
    headers: &HeaderMap,
    head: bool,
    faults: &[Kind],
) -> Result<Response<Body>, Refusal> {
    let (version, opened) = open(store, bucket, name)?;
    let size_bytes = version.size_bytes;
    let changed = faults.iter().find_map(|kind| match kind {
        Kind::ChangedEtag { ignores_if_match } => Some(*ignores_if_match),
        _ => None,
    });
    let etag = if changed.is_some() { etag_of(&[version.etag.as_bytes()]) } else { version.etag.clone() };
    let verdict = if changed == Some(true) { Verdict::Go } else { conditions::check_read(headers, &etag)? };
    let mut response = Response::new(Body::empty());
    if verdict == Verdict::NotModified {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        insert(&mut response, header::ETAG, &etag);
        return Ok(response);
    }
    let asked =
        if head || faults.contains(&Kind::IgnoredRange) { None } else { conditions::range(headers, size_bytes)? };
    if asked.is_none() {
        // The MD5 of the whole is of no use for a part; the SDK expects one with the whole object.
        match (store.multipart_md5(&version), hashed(store, &version).await) {
            (Some(md5), _) => insert(&mut response, HeaderName::from_static("opc-multipart-md5"), &md5),
            (None, Some(md5)) => {
                insert(&mut response, HeaderName::from_static("content-md5"), &STANDARD.encode(md5));
            }
            (None, None) => {}
        }
    }
    let mut sent = asked.clone().unwrap_or(0..size_bytes);
    if let Some(asked) = asked {
        if faults.contains(&Kind::WrongContentRange) {
            // Neighbouring bytes: one earlier if possible, else one fewer.
            sent = if asked.start > 0 { asked.start - 1..asked.end - 1 } else { 0..asked.end - 1 };
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let last = sent.end.saturating_sub(1);
        insert(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{last}/{size_bytes}", sent.start));
    }
    insert(&mut response, header::ACCEPT_RANGES, "bytes");
    insert(&mut response, header::CONTENT_LENGTH, &(sent.end - sent.start).to_string());
    insert(&mut response, header::CONTENT_TYPE, "application/octet-stream");
    insert(&mut response, header::ETAG, &etag);
    insert(
        &mut response,
        header::LAST_MODIFIED,
        &httpdate::fmt_http_date(version.modified.max(SystemTime::UNIX_EPOCH)),
    );
    insert(&mut response, HeaderName::from_static("storage-tier"), "Standard");
    if !head {
        *response.body_mut() = opened.body(sent.start, sent.end);
    }
    Ok(response)
}

/// The present version of an object and its content, which belong together.
fn open(store: &Store, bucket: &str, name: &str) -> Result<(Arc<Version>, Opened), Refusal> {
    let missing = || Refusal::missing(name, bucket);
    let mut version = store.get(name).ok_or_else(missing)?;
    loop {
        let opened = version.content.open().map_err(|_| missing())?;
        // Opening and looking are two steps: the loop makes sure that both saw the same version.
        let now = store.get(name).ok_or_else(missing)?;
        if now.etag == version.etag {
            return Ok((version, opened));
        }
        // Replaced between lookup and open.
        version = now;
    }
}

async fn hashed(store: &Arc<Store>, version: &Arc<Version>) -> Option<[u8; 16]> {
    let (store, version) = (Arc::clone(store), Arc::clone(version));
    tokio::task::spawn_blocking(move || store.md5(&version)).await.ok()?
}

/// Adds a header; a value that cannot be one is left out.
pub fn insert(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}

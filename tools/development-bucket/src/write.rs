//! PUT of one object in one request.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, Response, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use md5::{Digest, Md5};

use crate::answer::Refusal;
use crate::conditions;
use crate::content::Version;
use crate::read::insert;
use crate::store::Store;

/// Names that the service takes.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > 1024 || name.contains(['\0', '\r', '\n']) {
        return Err(Refusal::invalid("InvalidObjectName", "Names have 1 to 1024 bytes without NUL, CR and LF"));
    }
    Ok(())
}

/// Stores the body as the object called `name`.
pub async fn answer(store: &Store, name: &str, headers: &HeaderMap, body: Body) -> Result<Response<Body>, Refusal> {
    check_name(name)?;
    let received = receive(store, headers, body).await?;
    let md5 = received.md5;
    let placed = store.place(name, &received.path, Some(md5), None, |before| {
        conditions::check_write(headers, before.map(|version| version.etag.as_str()))
    });
    let version = placed?.map_err(Refusal::internal)?;
    Ok(stored(&version, &md5))
}

/// The answer to a body that was stored.
pub fn stored(version: &Version, md5: &[u8; 16]) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    insert(&mut response, header::ETAG, &version.etag);
    insert(&mut response, header::LAST_MODIFIED, &httpdate::fmt_http_date(version.modified));
    insert(&mut response, HeaderName::from_static("opc-content-md5"), &STANDARD.encode(md5));
    response
}

/// A body in a file of its own.
pub struct Received {
    pub path: PathBuf,
    pub md5: [u8; 16],
}

/// Writes a body to a temporary file, and checks it against `Content-MD5` where that is sent.
pub async fn receive(store: &Store, headers: &HeaderMap, body: Body) -> Result<Received, Refusal> {
    let (path, mut file) = store.temporary().map_err(Refusal::internal)?;
    let mut md5 = Md5::new();
    let mut pieces = body.into_data_stream();
    let mut whole = Ok(());
    while let Some(piece) = pieces.next().await {
        // A client that disconnects leaves no object behind.
        whole = piece.map_err(Refusal::internal).and_then(|piece| {
            md5.update(&piece);
            file.write_all(&piece).map_err(Refusal::internal)
        });
        if whole.is_err() {
            break;
        }
    }
    let md5: [u8; 16] = md5.finalize().into();
    let wanted = conditions::text(headers, HeaderName::from_static("content-md5"));
    let checked = whole.and_then(|()| match wanted {
        Some(wanted) if wanted != STANDARD.encode(md5) => {
            let message = "The Content-MD5 you specified did not match the received data";
            Err(Refusal::invalid("UnmatchedContentMD5", message))
        }
        _ => Ok(()),
    });
    match checked {
        Ok(()) => Ok(Received { path, md5 }),
        Err(refusal) => {
            let _ = fs::remove_file(path);
            Err(refusal)
        }
    }
}

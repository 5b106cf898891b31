//! Uploads in parts: opened by a PUT with `opc-multipart`, parts by number, POST commits, DELETE aborts.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use parking_lot::Mutex;
use serde_json::json;

use crate::answer::Refusal;
use crate::conditions;
use crate::content::etag_of;
use crate::read::insert;
use crate::store::Store;
use crate::target::encode;
use crate::write::{Received, check_name, receive};

/// The uploads that are open, by id.
#[derive(Default)]
pub struct Uploads(Mutex<HashMap<String, Upload>>);

struct Upload {
    object: String,
    parts: BTreeMap<u32, Received>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        for part in self.parts.values() {
            let _ = fs::remove_file(&part.path);
        }
    }
}

impl Uploads {
    /// Opens an upload; `base` is the path of the PAR up to its bucket.
    pub fn open(&self, object: &str, base: &str) -> Result<Response<Body>, Refusal> {
        check_name(object)?;
        let id = format!("{:032x}", rand::random::<u128>());
        let uri = format!("{base}/u/{}/id/{id}/", encode(object));
        self.uploads().insert(id.clone(), Upload { object: object.to_owned(), parts: BTreeMap::new() });
        let body = json!({ "object": object, "uploadId": id, "accessUri": uri }).to_string();
        let mut response = Response::new(Body::from(body));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// Stores one part, replacing the one of that number.
    pub async fn put(
        &self,
        store: &Store,
        object: &str,
        id: &str,
        number: u32,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response<Body>, Refusal> {
        if !(1..=10_000).contains(&number) {
            return Err(Refusal::invalid("InvalidUploadPart", "Parts are numbered from 1 to 10000"));
        }
        // Checked before the body is read: an unknown upload need not be received.
        self.with(object, id, |_| ())?;
        let received = receive(store, headers, body).await?;
        let (path, md5) = (received.path.clone(), received.md5);
        // Checked again: it may have been committed or aborted meanwhile.
        let replaced = self.with(object, id, |upload| upload.parts.insert(number, received));
        if let Some(replaced) = replaced.inspect_err(|_| drop(fs::remove_file(path)))? {
            let _ = fs::remove_file(replaced.path);
        }
        let mut response = Response::new(Body::empty());
        insert(&mut response, header::ETAG, &etag_of(&[id.as_bytes(), &number.to_le_bytes(), &md5]));
        insert(&mut response, HeaderName::from_static("opc-content-md5"), &STANDARD.encode(md5));
        Ok(response)
    }

    /// Makes the parts, in the order of their numbers, the content of the object.
    pub fn commit(
        &self,
        store: &Arc<Store>,
        object: &str,
        id: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Refusal> {
        if self.with(object, id, |upload| upload.parts.is_empty())? {
            return Err(Refusal::invalid("InvalidUploadPart", "The upload has no parts"));
        }
        // Removed first: a second commit finds no upload, as with the service.
        let upload = self.uploads().remove(id).ok_or_else(Refusal::missing_upload)?;
        let (path, md5) = join(store, &upload).map_err(Refusal::internal)?;
        let placed = store.place(object, &path, None, Some(md5.clone()), |before| {
            conditions::check_write(headers, before.map(|version| version.etag.as_str()))
        });
        let version = placed?.map_err(Refusal::internal)?;
        let mut response = Response::new(Body::empty());
        insert(&mut response, header::ETAG, &version.etag);
        insert(&mut response, header::LAST_MODIFIED, &httpdate::fmt_http_date(version.modified));
        insert(&mut response, HeaderName::from_static("opc-multipart-md5"), &md5);
        Ok(response)
    }

    /// Throws the parts away.
    pub fn abort(&self, object: &str, id: &str) -> Result<Response<Body>, Refusal> {
        self.with(object, id, |_| ())?;
        self.uploads().remove(id);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }

    /// Objects whose upload is open.
    pub fn list(&self) -> Vec<String> {
        let mut objects: Vec<String> = self.uploads().values().map(|upload| upload.object.clone()).collect();
        objects.sort();
        objects
    }

    fn with<T>(&self, object: &str, id: &str, work: impl FnOnce(&mut Upload) -> T) -> Result<T, Refusal> {
        let mut uploads = self.uploads();
        let upload = uploads.get_mut(id).filter(|upload| upload.object == object);
        upload.map(work).ok_or_else(Refusal::missing_upload)
    }

    fn uploads(&self) -> parking_lot::MutexGuard<'_, HashMap<String, Upload>> {
        self.0.lock()
    }
}

/// One file of all parts, and the MD5 of their MD5s as the service writes it: `BASE64-PARTS`.
fn join(store: &Store, upload: &Upload) -> io::Result<(PathBuf, String)> {
    let (path, mut whole) = store.temporary()?;
    let mut md5s = Md5::new();
    for part in upload.parts.values() {
        io::copy(&mut File::open(&part.path)?, &mut whole)?;
        md5s.update(part.md5);
    }
    Ok((path, format!("{}-{}", STANDARD.encode(md5s.finalize()), upload.parts.len())))
}

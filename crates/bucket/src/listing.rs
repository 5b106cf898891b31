//! All objects of a PAR, page by page.
//!
//! The service's order (UTF-8 bytes) is checked, so that a page served twice, left out or cut is an error here
//! and not a strange file system later.

use std::collections::VecDeque;

use super::Bucket;
use super::answer::Failure;
use super::error::{Error, ErrorKind};
use super::object::{ListedObject, Object};
use super::probe;
use super::retry::Attempts;
use super::transport::Transport;
use flashjob_config::ParTarget;

/// Most objects that the service returns on a page.
const PAGE_OBJECTS: usize = 1000;
/// Largest page in bytes. The longest names with each byte escaped make about 13 MB.
const LONGEST_PAGE_BYTES: usize = 32 << 20;
/// Most pages in a row without an object, and most pages of a listing: a hundred times as many as full pages need.
const MOST_EMPTY_PAGES: usize = 100;
const MOST_PAGES: usize = 100_000;
/// Most objects and bytes of names of one listing: some 400 MB, together with the index that is made of it.
const MOST_OBJECTS: usize = 1_000_000;
const MOST_TEXT_BYTES: usize = 128 << 20;
/// A name without an object, for finding out whether a PAR can read at all.
const UNUSED_NAME: &str = ".flashjob-probe";

/// One page, as the service sends it.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    objects: VecDeque<ListedObject>,
    next_start_with: Option<String>,
}

impl Bucket {
    /// Every object whose name starts with `prefix`, in the order of their names' bytes.
    ///
    /// The PAR of one object is not listed: the object is looked up. A URL that ends in `/o/PREFIX/` is the PAR
    /// of a prefix with the prefix written out, as Oracle asks of its users, and lists what is under it.
    ///
    /// # Errors
    /// [`ErrorKind::ListingNotAllowed`] where the PAR reads objects but may not list them; see [`ErrorKind`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<Object>, Error> {
        // Objects without a listed ETag are held to their first answer since the listing; an earlier listing's no
        // longer count.
        self.transport.versions().forget();
        match self.transport.par().target() {
            ParTarget::Collection => self.list_under(prefix).await,
            // A prefix PAR with its prefix written out. Only the intersection with `prefix` can be listed.
            ParTarget::Object(under) if under.ends_with('/') => {
                if prefix.starts_with(under.as_str()) {
                    self.list_under(prefix).await
                } else if under.starts_with(prefix) {
                    self.list_under(under).await
                } else {
                    Ok(Vec::new())
                }
            }
            ParTarget::Object(name) if name.starts_with(prefix) => Ok(vec![self.head(name).await?]),
            ParTarget::Object(_) => Ok(Vec::new()),
        }
    }

    async fn list_under(&self, prefix: &str) -> Result<Vec<Object>, Error> {
        let transport = &*self.transport;
        let mut attempted = format!("list objects in bucket `{}`", transport.par().bucket());
        if !prefix.is_empty() {
            attempted.push_str(&format!(" under `{}`", prefix.escape_debug()));
        }
        let mut attempts = Attempts::new(transport, attempted);
        let mut objects = Vec::new();
        let mut start = None;
        let (mut pages, mut empty_pages, mut text_bytes) = (0, 0, 0);
        loop {
            let before = objects.len();
            match page(transport, prefix, start.as_deref(), &mut objects).await {
                Ok(None) => return Ok(objects),
                Ok(next) => {
                    // The retry budget starts anew with each page, so that a listing of many pages may survive many
                    // short failures.
                    attempts.progressed();
                    start = next;
                    pages += 1;
                    // Empty pages are legal, for deleted objects, but an endless series of them is not.
                    empty_pages = if objects.len() == before { empty_pages + 1 } else { 0 };
                    text_bytes += objects[before..].iter().map(text_bytes_of).sum::<usize>();
                    // Limits are checked page by page: a hostile or broken server must not fill the memory first.
                    if let Err(failure) = limited(pages, empty_pages, objects.len(), text_bytes) {
                        return Err(attempts.fail(failure));
                    }
                }
                // The service denies a PAR without listing rights and a dead PAR in the same way. A read of an object
                // that does not exist tells them apart: only a PAR that works answers that it is missing.
                Err(failure)
                    if failure.is_denied() && probe::reads(transport, &format!("{prefix}{UNUSED_NAME}")).await =>
                {
                    return Err(attempts.fail(Failure { kind: ErrorKind::ListingNotAllowed, ..failure }));
                }
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }
}

fn text_bytes_of(object: &Object) -> usize {
    object.name.len() + object.etag.as_ref().map_or(0, String::len)
}

/// Refuses a listing beyond the limits.
fn limited(pages: usize, empty_pages: usize, objects: usize, text_bytes: usize) -> Result<(), Failure> {
    let too_many = |cause: String| Err(Failure::new(ErrorKind::TooManyObjects, cause));
    if empty_pages >= MOST_EMPTY_PAGES {
        return too_many(format!(
            "the listing has no object on {empty_pages} pages in a row, and says that there are more"
        ));
    }
    if pages >= MOST_PAGES {
        return too_many(format!("the listing goes on after {pages} pages"));
    }
    if objects > MOST_OBJECTS {
        return too_many(format!("the listing goes on after {objects} objects, and {MOST_OBJECTS} are the limit"));
    }
    if text_bytes > MOST_TEXT_BYTES {
        return too_many(format!(
            "names take {text_bytes} bytes after {objects} objects, and {MOST_TEXT_BYTES} are the limit"
        ));
    }
    Ok(())
}

/// Adds one page to `objects`, all of it or nothing, and returns the start of the next page.
async fn page(
    transport: &Transport,
    prefix: &str,
    start: Option<&str>,
    objects: &mut Vec<Object>,
) -> Result<Option<String>, Failure> {
    let limit = PAGE_OBJECTS.to_string();
    let mut query = vec![("fields", "name,size,etag,timeModified,md5"), ("limit", limit.as_str())];
    if !prefix.is_empty() {
        query.push(("prefix", prefix));
    }
    query.extend(start.map(|start| ("start", start)));
    let request = transport.client().get(transport.par().listing_url()).query(&query);
    let mut reply = transport.send(request).await?.success().await?;
    let body = reply.collect(LONGEST_PAGE_BYTES).await?;
    let read = read_page(&body, prefix, start, objects.last().map(|object| object.name.as_str()));
    let (page, next) = read.map_err(|fault| Failure::protocol(fault).with_request_id(reply.headers()))?;
    objects.extend(page);
    Ok(next)
}

/// The objects of a page and the start of the next one, or the page's fault.
pub(super) fn read_page(
    body: &[u8],
    prefix: &str,
    start: Option<&str>,
    last: Option<&str>,
) -> Result<(Vec<Object>, Option<String>), String> {
    let page: Page = serde_json::from_slice(body).map_err(|error| format!("the listing is not whole: {error}"))?;
    // Other services may return larger pages, but not a hundred times larger.
    if page.objects.len() > 100 * PAGE_OBJECTS {
        return Err(format!(
            "a page of the listing holds {} objects, {PAGE_OBJECTS} were asked for",
            page.objects.len()
        ));
    }
    let mut objects: Vec<Object> = Vec::with_capacity(page.objects.len());
    // Strictly ascending across pages: a page that is repeated or lost would otherwise give a file system with wrong
    // contents.
    for listed in page.objects {
        let before = objects.last().map(|object| object.name.as_str()).or(last);
        if before.is_some_and(|before| before.as_bytes() >= listed.name.as_bytes())
            || start.is_some_and(|start| listed.name.as_bytes() < start.as_bytes())
        {
            return Err(format!("the listing is out of order at `{}`", listed.name.escape_debug()));
        }
        if !listed.name.starts_with(prefix) {
            return Err(format!("the listing holds `{}`, which was not asked for", listed.name.escape_debug()));
        }
        objects.push(listed.into_object()?);
    }
    // The next page starts behind everything seen so far: a listing cannot go in circles.
    if let Some(next) = &page.next_start_with {
        let seen = objects.last().map(|object| object.name.as_str()).or(last);
        if seen.max(start).is_some_and(|seen| next.as_bytes() <= seen.as_bytes()) {
            return Err(format!("the listing goes in circles: it continues at `{}`", next.escape_debug()));
        }
    }
    Ok((objects, page.next_start_with))
}

//! One object as a listing or a HEAD describes it.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap, LAST_MODIFIED};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest name that the service accepts, in bytes.
const LONGEST_NAME_BYTES: usize = 1024;

/// Longest ETag that is accepted, in bytes; the service's have 36.
const LONGEST_ETAG_BYTES: usize = 256;

/// An object's name and the version of its content that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The whole name, as stored: any UTF-8 without NUL, CR and LF.
    pub name: String,
    /// Length of the content, in bytes.
    pub size_bytes: u64,
    /// ETag: opaque identity of this version of the content, not a hash.
    pub etag: Option<String>,
    /// Time at which the content was written.
    pub modified: Option<SystemTime>,
    /// MD5 of the content; objects uploaded in parts have none.
    pub md5: Option<[u8; 16]>,
}

/// One entry of a listing, as the service sends it.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListedObject {
    pub(super) name: String,
    size: Option<u64>,
    etag: Option<String>,
    time_modified: Option<String>,
    md5: Option<String>,
}

impl ListedObject {
    /// The object, or the fault of its entry.
    pub(super) fn into_object(self) -> Result<Object, String> {
        if self.name.len() > LONGEST_NAME_BYTES {
            let beginning = &self.name[..self.name.floor_char_boundary(60)];
            return Err(format!(
                "the listing holds a name of {} bytes: `{}…`",
                self.name.len(),
                beginning.escape_debug()
            ));
        }
        if self.etag.as_ref().is_some_and(|etag| etag.len() > LONGEST_ETAG_BYTES) {
            return Err(format!("the listing gives an ETag above {LONGEST_ETAG_BYTES} bytes for `{}`", self.name));
        }
        let Some(size_bytes) = self.size else {
            return Err(format!("the listing gives no size for `{}`", self.name));
        };
        Ok(Object {
            size_bytes,
            // Optional fields that cannot be parsed count as absent: the object is still readable.
            etag: self.etag.as_deref().and_then(bare_etag),
            modified: self.time_modified.as_deref().and_then(rfc3339),
            md5: self.md5.as_deref().and_then(md5),
            name: self.name,
        })
    }
}

impl Object {
    /// The object called `name` as the headers of a HEAD or a whole GET describe it, or their fault.
    pub(super) fn from_headers(name: &str, headers: &HeaderMap) -> Result<Self, String> {
        let size = text(headers, CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok());
        let Some(size_bytes) = size else {
            return Err("the answer has no Content-Length".to_owned());
        };
        Ok(Self {
            name: name.to_owned(),
            size_bytes,
            etag: etag(headers),
            modified: text(headers, LAST_MODIFIED.as_str()).and_then(|date| httpdate::parse_http_date(date).ok()),
            md5: text(headers, "content-md5").and_then(md5),
        })
    }
}

/// The ETag in `headers`, without quotes.
pub(super) fn etag(headers: &HeaderMap) -> Option<String> {
    text(headers, ETAG.as_str()).and_then(bare_etag)
}

/// Value of a header, if present and text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Reason why no request can contain `name`, if there is one.
pub fn name_fault(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("the name is empty"),
        // A URL's path cannot end in these segments: every client resolves them away, encoded or not.
        "." | ".." => Some("a URL cannot carry that name"),
        _ if name.len() > LONGEST_NAME_BYTES => Some("the name is longer than 1024 bytes"),
        _ if name.contains(['\0', '\r', '\n']) => Some("the name holds a NUL, CR or LF"),
        _ => None,
    }
}

/// Removes quotes and the weak mark, which a proxy may add: Object Storage sends bare ETags. `None` for a value that
/// names no version (empty, or the `*` of a condition) or that no header can carry.
fn bare_etag(etag: &str) -> Option<String> {
    let bare = etag.trim_start_matches("W/").trim_matches('"');
    let names_one = !matches!(bare, "" | "*") && bare.bytes().all(|byte| byte.is_ascii_graphic());
    names_one.then(|| bare.to_owned())
}

/// Decodes an MD5 from base64.
pub(super) fn md5(base64: &str) -> Option<[u8; 16]> {
    STANDARD.decode(base64).ok()?.try_into().ok()
}

fn rfc3339(date: &str) -> Option<SystemTime> {
    let nanoseconds = OffsetDateTime::parse(date, &Rfc3339).ok()?.unix_timestamp_nanos();
    let distance = |nanoseconds: i128| u64::try_from(nanoseconds).ok().map(Duration::from_nanos);
    if nanoseconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(distance(nanoseconds)?)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(distance(-nanoseconds)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(json: &str) -> Result<Object, String> {
        serde_json::from_str::<ListedObject>(json).unwrap().into_object()
    }

    #[test]
    fn a_listed_object_keeps_what_can_be_read() {
        let object = listed(
            r#"{"name":"a","size":3,"etag":"e-1","timeModified":"2024-05-06T07:08:09.123Z","md5":"kAFQmDzST7DWlj99KOF/cg=="}"#,
        )
        .unwrap();
        assert_eq!((object.size_bytes, object.etag.as_deref()), (3, Some("e-1")));
        assert_eq!(object.modified, Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_714_979_289_123)));
        assert_eq!(object.md5.map(|md5| md5[0]), Some(0x90));
    }

    #[test]
    fn what_a_listing_lacks_is_none_but_a_size_is_needed() {
        let object =
            listed(r#"{"name":"a","size":0,"md5":"kAFQmDzST7DWlj99KOF/cg==-3","timeModified":"soon"}"#).unwrap();
        assert_eq!((object.etag, object.modified, object.md5), (None, None, None));
        assert!(listed(r#"{"name":"a"}"#).unwrap_err().contains("`a`"));
    }

    #[test]
    fn etags_are_compared_bare() {
        for sent in ["e-1", "\"e-1\"", "W/\"e-1\""] {
            assert_eq!(bare_etag(sent).as_deref(), Some("e-1"));
        }
        for sent in ["", "\"\"", "*", "W/\"*\"", "a\nb", "a b", "\u{e4}"] {
            assert_eq!(bare_etag(sent), None, "{sent:?}");
        }
    }

    #[test]
    fn names_that_cannot_be_sent_are_known() {
        for name in ["", ".", "..", "a\0", "a\r", "a\nb", &"x".repeat(1025)] {
            assert!(name_fault(name).is_some(), "{name:?}");
        }
        for name in ["a", "...", "./x", "dir/", "a//b", "dir/../x", "ü ?#%+&", &"x".repeat(1024)] {
            assert_eq!(name_fault(name), None, "{name:?}");
        }
    }
}

//! Resource named by a request's path.
//!
//! Paths are taken apart as they were sent: resolving `..` or decoding before splitting would change names.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// `/p/TOKEN/n/NAMESPACE/b/BUCKET/…`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub token: String,
    pub namespace: String,
    pub bucket: String,
    pub resource: Resource,
}

/// Part of the URL after the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `o` or `o/`: all objects.
    Listing,
    /// `o/NAME`: one object.
    Object(String),
    /// `u/NAME/id/ID/` and, for one part, its number.
    Upload { object: String, id: String, part: Option<u32> },
}

impl Target {
    /// `None` where `path` (without query) is not one of a PAR.
    pub fn parse(path: &str) -> Option<Self> {
        // Split before decoding: a name may contain encoded slashes.
        let parts: Vec<&str> = path.splitn(9, '/').collect();
        let ["", "p", token, "n", namespace, "b", bucket, kind, rest @ ..] = parts.as_slice() else {
            return None;
        };
        let rest = rest.first().copied().unwrap_or("");
        let resource = match *kind {
            "o" if rest.is_empty() => Resource::Listing,
            "o" => Resource::Object(decode(rest)?),
            "u" => {
                // From the right: the name may contain `/id/` itself.
                let (object, rest) = rest.rsplit_once("/id/")?;
                let (id, part) = rest.split_once('/').unwrap_or((rest, ""));
                let part = if part.is_empty() { None } else { Some(part.parse().ok()?) };
                Resource::Upload { object: decode(object)?, id: id.to_owned(), part }
            }
            _ => return None,
        };
        Some(Self { token: decode(token)?, namespace: decode(namespace)?, bucket: decode(bucket)?, resource })
    }
}

fn decode(text: &str) -> Option<String> {
    Some(percent_decode_str(text).decode_utf8().ok()?.into_owned())
}

/// RFC 3986's unreserved characters stay as they are.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const NAME: &AsciiSet = &SEGMENT.remove(b'/');

/// A name as it stands in a path. Names with `.` or `..` segments keep no slash: clients would resolve them.
pub fn encode(name: &str) -> String {
    let dots = name.split('/').any(|segment| matches!(segment, "." | ".."));
    utf8_percent_encode(name, if dots { SEGMENT } else { NAME }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_went() {
        for name in ["a", "a/b", "a//b", "./x", "dir/../x", "dir/", "ü +&#?%", "%2F", "u/x/id/y"] {
            let target = Target::parse(&format!("/p/t/n/ns/b/bucket/o/{}", encode(name))).unwrap();
            assert_eq!(target.resource, Resource::Object(name.to_owned()));
            let upload = Target::parse(&format!("/p/t/n/ns/b/bucket/u/{}/id/7/3", encode(name))).unwrap();
            assert_eq!(
                upload.resource,
                Resource::Upload { object: name.to_owned(), id: "7".to_owned(), part: Some(3) }
            );
        }
    }

    #[test]
    fn listings_have_a_slash_or_none() {
        for path in ["/p/t/n/ns/b/bucket/o", "/p/t/n/ns/b/bucket/o/"] {
            assert_eq!(Target::parse(path).unwrap().resource, Resource::Listing);
        }
        for path in
            ["/", "/n/ns/b/bucket/o", "/p/t/n/ns/b/bucket", "/p/t/n/ns/b/bucket/x/a", "/p/t/n/ns/b/bucket/o/%ff"]
        {
            assert_eq!(Target::parse(path), None, "{path}");
        }
    }
}

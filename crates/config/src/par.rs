//! Pre-Authenticated Request URLs of OCI Object Storage, parsed and never printed whole.
//!
//! Shape (Oracle's documentation, "Using Pre-Authenticated Requests"):
//! `https://HOST/p/TOKEN/n/NAMESPACE/b/BUCKET/o/[OBJECT]`. The token is the credential.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::Secret;

/// Longest PAR URL in bytes, Oracle's limit.
const LONGEST_URL_BYTES: usize = 3500;

/// All characters except the unreserved ones of RFC 3986, and `/`.
const OBJECT_NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The same set with `/` encoded, which the service accepts as well.
const OBJECT_NAME_AS_SEGMENT: &AsciiSet = &OBJECT_NAME.add(b'/');

/// Schemes of other places for models, which may be named in an error.
const OTHER_SCHEMES: [&str; 8] = ["ftp", "sftp", "file", "s3", "gs", "oci", "hf", "ws"];

/// Object or objects that a PAR gives access to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParTarget {
    /// A bucket, or the part of it under a prefix that the URL does not name.
    Collection,
    /// One object, by its decoded name.
    Object(String),
}

/// A parsed PAR URL. `Debug` and `Display` print the token as `<redacted>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Par {
    /// Scheme, host and port.
    origin: String,
    token: Secret,
    namespace: String,
    bucket: String,
    target: ParTarget,
}

/// Reasons why a text is not a PAR URL. The text is never repeated: it may contain a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParError {
    /// The text is no URL.
    #[error("it is not a URL ({0})")]
    NotAUrl(url::ParseError),
    /// A scheme other than http and https.
    #[error("its scheme is {}, not https or http", .0.map_or("another one".to_owned(), |scheme| format!("`{scheme}`")))]
    Scheme(Option<&'static str>),
    /// A path that is not `/p/TOKEN/n/NAMESPACE/b/BUCKET/o/…`.
    #[error("its path is not /p/TOKEN/n/NAMESPACE/b/BUCKET/o/ (found {0})")]
    Path(String),
    /// A query or fragment, which no PAR has.
    #[error("it has a query or a fragment, which a PAR never has")]
    Query,
    /// Longer than Oracle allows.
    #[error("it is {0} bytes long, above the 3500 that a PAR can have")]
    TooLong(usize),
    /// An object name that is not UTF-8.
    #[error("its object name is not UTF-8")]
    ObjectName,
}

impl Par {
    /// Parses a PAR URL.
    ///
    /// # Errors
    /// Says in which way `text` is not one, without repeating a token.
    pub fn parse(text: &str) -> Result<Self, ParError> {
        if text.len() > LONGEST_URL_BYTES {
            return Err(ParError::TooLong(text.len()));
        }
        let url = Url::parse(text).map_err(ParError::NotAUrl)?;
        if !matches!(url.scheme(), "http" | "https") {
            // The first word of a text that is no URL may be anything, also a token.
            return Err(ParError::Scheme(OTHER_SCHEMES.into_iter().find(|scheme| *scheme == url.scheme())));
        }
        // Both would be sent along or lost; the URL of another service has them, with a signature in it.
        if url.query().is_some() || url.fragment().is_some() {
            return Err(ParError::Query);
        }
        // The raw text instead of `url.path()`: an object name may contain `..`, which a URL parser would resolve.
        let path =
            text.split_once("://").and_then(|(_, rest)| rest.find('/').map(|start| &rest[start..])).unwrap_or("");
        let wrong = || ParError::Path(path_shape(path));
        // At most nine: the object's name, which is last, may contain slashes.
        let parts: Vec<&str> = path.splitn(9, '/').collect();
        let ["", "p", token, "n", namespace, "b", bucket, "o", rest @ ..] = parts.as_slice() else {
            return Err(wrong());
        };
        // Placeholders in a template that were not filled in.
        if token.is_empty() || namespace.is_empty() || bucket.is_empty() {
            return Err(wrong());
        }
        let decode = |part: &str| {
            percent_decode_str(part).decode_utf8().map(|text| text.into_owned()).map_err(|_| ParError::ObjectName)
        };
        let target = match rest {
            [] | [""] => ParTarget::Collection,
            [object] => ParTarget::Object(decode(object)?),
            _ => return Err(wrong()),
        };
        Ok(Self {
            origin: url.origin().ascii_serialization(),
            token: Secret::new(*token),
            namespace: decode(namespace)?,
            bucket: decode(bucket)?,
            target,
        })
    }

    /// Object or objects that it gives access to.
    pub fn target(&self) -> &ParTarget {
        &self.target
    }

    /// Name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// URL for listing objects. Contains the token: never print it.
    pub fn listing_url(&self) -> String {
        self.with_token(self.token.reveal())
    }

    /// URL of the object called `name`. Contains the token: never print it.
    pub fn object_url(&self, name: &str) -> String {
        // URL parsers resolve the segments `.` and `..`, so a name with them is encoded as one segment.
        let dots = name.split('/').any(|segment| matches!(segment, "." | ".."));
        let set = if dots { OBJECT_NAME_AS_SEGMENT } else { OBJECT_NAME };
        format!("{}{}", self.listing_url(), utf8_percent_encode(name, set))
    }

    /// Scheme, host and port, the base of `accessUri`s of multipart uploads.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The part of an upload's `path` (`/p/TOKEN/n/…`) after the token. `None` if the token is not this PAR's: without
    /// a token of its own, a later process could not use the rest.
    pub fn behind_token<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix("/p/")?.strip_prefix(self.token.reveal())?;
        (rest.starts_with('/') && !rest.contains(self.token.reveal())).then_some(rest)
    }

    /// The path with this PAR's token before `rest`, the reverse of [`Self::behind_token`]. Contains the token: never
    /// print it.
    pub fn path_behind_token(&self, rest: &str) -> String {
        format!("/p/{}{rest}", self.token.reveal())
    }

    /// The token, for redaction.
    pub fn token(&self) -> &Secret {
        &self.token
    }

    /// `text` with every occurrence of the token replaced, for messages of other origin.
    pub fn redact(&self, text: &str) -> String {
        text.replace(self.token.reveal(), "<redacted>")
    }

    fn with_token(&self, token: &str) -> String {
        let encode = |part| utf8_percent_encode(part, NON_ALPHANUMERIC);
        let Self { origin, namespace, bucket, .. } = self;
        // Valid names need no encoding, and are left readable.
        if [namespace, bucket].iter().all(|part| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
        {
            format!("{origin}/p/{token}/n/{namespace}/b/{bucket}/o/")
        } else {
            format!("{origin}/p/{token}/n/{}/b/{}/o/", encode(namespace), encode(bucket))
        }
    }
}

/// The shape of a path, cut to a length for a sentence. Parts at their proper place of a PAR are shown; others may be a
/// token.
fn path_shape(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    let at = |position: Option<usize>| position.and_then(|position| parts.get(position)).copied();
    let shown = parts.iter().enumerate().map(|(position, part)| {
        let around = (at(position.checked_sub(1)), at(Some(position + 1)));
        match *part {
            "" | "p" | "n" | "b" | "o" => *part,
            _ if matches!(around, (Some("n"), Some("b")) | (Some("b"), Some("o"))) => *part,
            _ => "<redacted>",
        }
    });
    let shape: String = shown.collect::<Vec<_>>().join("/").chars().take(80).collect();
    if shape.is_empty() { "no path".to_owned() } else { format!("`{shape}`") }
}

impl fmt::Display for Par {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_token("<redacted>"))?;
        match &self.target {
            ParTarget::Collection => Ok(()),
            ParTarget::Object(name) => write!(f, "{}", utf8_percent_encode(name, OBJECT_NAME)),
        }
    }
}

impl fmt::Debug for Par {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Par({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "https://objectstorage.eu-frankfurt-1.oraclecloud.com/p/s3cr3t/n/ns/b/models/o/";

    #[test]
    fn a_bucket_par_is_taken_apart_and_put_together() {
        let par = Par::parse(BASE).unwrap();
        assert_eq!(par.target(), &ParTarget::Collection);
        assert_eq!(par.bucket(), "models");
        assert_eq!(par.listing_url(), BASE);
        assert_eq!(par.object_url("a b/ü?.bin"), format!("{BASE}a%20b/%C3%BC%3F.bin"));
        assert_eq!(Par::parse(BASE.trim_end_matches('/')).unwrap(), par);
    }

    #[test]
    fn an_object_par_keeps_its_name_as_it_is() {
        let par = Par::parse(&format!("{BASE}dir/..%2Fx/a%20b")).unwrap();
        assert_eq!(par.target(), &ParTarget::Object("dir/../x/a b".to_owned()));
    }

    #[test]
    fn a_url_parser_leaves_object_names_as_they_are() {
        let par = Par::parse(BASE).unwrap();
        for name in ["./x", "dir/../x", "a/..", "a//b", "/a", "dir/", "a/.../b", "%2e%2e/x", "ü +&#?%"] {
            let url = par.object_url(name);
            assert_eq!(Url::parse(&url).unwrap().as_str(), url);
            assert_eq!(Par::parse(&url).unwrap().target(), &ParTarget::Object(name.to_owned()));
        }
    }

    #[test]
    fn the_token_is_never_shown() {
        let par = Par::parse(&format!("{BASE}x")).unwrap();
        for shown in [par.to_string(), format!("{par:?}"), format!("{par:#?}"), par.redact("at /p/s3cr3t/n")] {
            assert!(!shown.contains("s3cr3t") && shown.contains("<redacted>"), "{shown}");
        }
        let error = Par::parse("https://host/p/s3cr3t/n/ns/x").unwrap_err().to_string();
        assert_eq!(
            error,
            "its path is not /p/TOKEN/n/NAMESPACE/b/BUCKET/o/ (found `/p/<redacted>/n/<redacted>/<redacted>`)"
        );
        for text in [
            "https://host/s3cr3t/n/ns/b/x/o/",
            "https://host/p/x/s3cr3t/n/ns/b/x/o/",
            "https://host/P/s3cr3t/n/ns/b/x/o/",
            "https://host/p//s3cr3t/n/ns/b/x/o/",
            "https://host/n/ns/b/x/o/s3cr3t",
            "https://host/p/s3cr3t",
            "https://host/s3cr3t",
            "https://host/n/s3cr3t",
            "s3cr3t://host/p/x/n/ns/b/x/o/",
            "s3cr3t:x",
            "https://host/p/s3cr3t/n/ns/b/x/o/?s3cr3t",
            "https://s3cr3t:s3cr3t@host/x",
            "https://host:s3cr3t/p/x",
        ] {
            let error = Par::parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{text}: {error:?}");
        }
    }

    #[test]
    fn the_path_of_an_upload_is_kept_without_the_token() {
        let par = Par::parse(BASE).unwrap();
        let rest = par.behind_token("/p/s3cr3t/n/ns/b/models/u/a%20b/id/7/").unwrap();
        assert_eq!(rest, "/n/ns/b/models/u/a%20b/id/7/");
        assert_eq!(par.path_behind_token(rest), "/p/s3cr3t/n/ns/b/models/u/a%20b/id/7/");
        for path in ["/p/other/n/x/", "/p/s3cr3tly/n/x/", "/p/s3cr3t", "/p/s3cr3t/u/s3cr3t/", "s3cr3t/n/x/", ""] {
            assert_eq!(par.behind_token(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_not_a_par_is_refused() {
        for (text, part) in [
            ("", "not a URL"),
            ("models", "not a URL"),
            ("ftp://host/p/t/n/n/b/b/o/", "scheme is `ftp`"),
            ("https://host", "no path"),
            ("https://mlflow.example.com/#/experiments/1", "fragment"),
            ("https://host/p//n/ns/b/bucket/o/", "path is not"),
            ("https://host/p/t/n/ns/b//o/", "path is not"),
            ("https://host/p/t/n/ns/b/bucket/", "path is not"),
            ("https://host/p/t/n/ns/b/bucket/o/%ff", "not UTF-8"),
            ("https://host/p/t/n/ns/b/bucket/o/?x=1", "query"),
        ] {
            let error = Par::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Par::parse(&format!("{BASE}{}", "x".repeat(3500))).unwrap_err().to_string().contains("3500"));
    }
}

//! Errors of a bucket, each as one sentence that a person can act on.
//!
//! Every message of this crate is made here, and tokens are removed here, from text of any origin.

use std::fmt;

use flashjob_config::{Par, shortened};

/// Kinds of failure that a caller may want to treat differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The PAR is unknown, expired or deleted, or does not allow what was asked.
    ParNoLongerWorks,
    /// The PAR is for names under a prefix, and this name or listing is not under it.
    OutsidePrefix,
    /// The PAR reads objects but was made without permission to list them.
    ListingNotAllowed,
    /// The PAR reads objects but was made without permission to write them.
    WritingNotAllowed,
    /// There is no object of that name.
    NotFound,
    /// The object is no longer the version that was listed.
    Changed,
    /// The service kept asking to slow down until the deadline.
    Throttled,
    /// The service kept failing (5xx) until the deadline.
    ServerFailed,
    /// No connection, no answer, or no whole answer until the deadline.
    Unreachable,
    /// Answers that Object Storage does not give; nothing of them was used.
    Protocol,
    /// The service refuses the request as it is, or it cannot be made at all (a name, a range).
    InvalidRequest,
    /// More objects than an index of them has room for.
    TooManyObjects,
    /// The local file that was to be sent cannot be read.
    LocalFile,
}

impl ErrorKind {
    /// Returns whether a later attempt may succeed, perhaps with a new PAR.
    pub(super) fn may_pass(self) -> bool {
        matches!(self, Self::ParNoLongerWorks | Self::Throttled | Self::ServerFailed | Self::Unreachable)
    }

    /// Advice to the user.
    fn advice(self) -> &'static str {
        match self {
            ErrorKind::ParNoLongerWorks => {
                "Make a new PAR that allows this and has not expired, and start again with its URL"
            }
            ErrorKind::OutsidePrefix => {
                "Write the PAR's prefix behind the `/o/` of its URL, ending in `/`, or use names under that prefix"
            }
            ErrorKind::ListingNotAllowed => {
                "Make the PAR with object listing enabled (`--bucket-listing-action ListObjects`)"
            }
            ErrorKind::WritingNotAllowed => "Make a PAR with access type AnyObjectReadWrite or AnyObjectWrite",
            ErrorKind::NotFound => "Check the name; names are case-sensitive",
            ErrorKind::Changed => "Start again once the object is not written to any more",
            ErrorKind::Throttled => "Start fewer readers at once, or try again later",
            ErrorKind::ServerFailed => "Try again later; the request id helps the provider's support",
            ErrorKind::Unreachable => "Check the host in the PAR's URL, the network and its proxies",
            ErrorKind::Protocol => "Check that the URL is one of Object Storage and that no proxy alters answers",
            ErrorKind::InvalidRequest => "Correct the name or the range",
            ErrorKind::TooManyObjects => "Name the directories and objects that are wanted with `include`",
            ErrorKind::LocalFile => "Check that the file is there, readable, and not being written",
        }
    }
}

/// A failed operation on a bucket. `Display` is one or two sentences without the token.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    attempted: String,
    cause: String,
    request_id: Option<String>,
    tries: u32,
}

impl Error {
    /// A failure to do what `attempted` says ("list objects in bucket `b`") after `tries` tries.
    pub(super) fn new(par: &Par, attempted: &str, tries: u32, failure: super::answer::Failure) -> Self {
        let clean = |text: &str| without_tokens(&par.redact(text));
        Self {
            kind: failure.kind,
            attempted: clean(attempted),
            cause: shortened(clean(&failure.cause), LONGEST_CAUSE_BYTES),
            request_id: failure.request_id.as_deref().map(clean),
            tries,
        }
    }

    /// Kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The service's request ID (`opc-request-id`), which its support asks for.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}: {}", self.attempted, self.cause)?;
        match (&self.request_id, self.tries) {
            (None, 0 | 1) => {}
            (None, tries) => write!(f, " ({tries} tries)")?,
            (Some(id), 0 | 1) => write!(f, " (opc-request-id {id})")?,
            (Some(id), tries) => write!(f, " ({tries} tries, the last with opc-request-id {id})")?,
        }
        write!(f, ". {}.", self.kind.advice())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

/// Longest cause that is shown, in bytes: names and answers may be of any length.
const LONGEST_CAUSE_BYTES: usize = 1000;

/// Replaces tokens of PAR URLs: `accessUri`s of multipart uploads have tokens of their own.
fn without_tokens(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("/p/") {
        let (before, token) = rest.split_at(start + 3);
        clean.push_str(before);
        rest = match token.find("/n/") {
            // A token has no white space: a text that merely mentions both marks is left as it is.
            Some(end) if !token[..end].contains(char::is_whitespace) => {
                clean.push_str("<redacted>");
                &token[end..]
            }
            _ => token,
        };
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::super::answer::Failure;
    use super::*;

    #[test]
    fn tokens_of_others_are_hidden_too() {
        for (text, clean) in [
            ("", ""),
            ("nothing here", "nothing here"),
            ("at /p/abc/n/ns/b/x", "at /p/<redacted>/n/ns/b/x"),
            ("/p/a/n/x and http://h/p/b/n/y", "/p/<redacted>/n/x and http://h/p/<redacted>/n/y"),
            ("/p/ is a path, /n/ another", "/p/ is a path, /n/ another"),
        ] {
            assert_eq!(without_tokens(text), clean);
        }
    }

    #[test]
    fn a_message_says_what_why_and_what_next() {
        let par = Par::parse("https://host/p/s3cr3t/n/ns/b/models/o/").unwrap();
        let mut failure = Failure::new(ErrorKind::NotFound, "s3cr3t answered 404".to_owned());
        failure.request_id = Some("id-s3cr3t".to_owned());
        let error = Error::new(&par, "read object `s3cr3t`", 3, failure);
        assert_eq!(
            error.to_string(),
            "could not read object `<redacted>`: <redacted> answered 404 \
             (3 tries, the last with opc-request-id id-<redacted>). Check the name; names are case-sensitive."
        );
        assert!(!format!("{error:?}").contains("s3cr3t"));
    }
}

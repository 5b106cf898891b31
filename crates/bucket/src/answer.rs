//! Interpretation of the service's answers: success, a retry, or a kind of failure.
//!
//! Codes and statuses are those of Oracle's "API Errors" and of the official SDK's retry strategy, which tries
//! again after 429 and any 5xx but 501.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::error::ErrorKind;
use super::object;
use flashjob_retry::retry_after;

/// Longest part of the service's text that a message repeats, in characters.
const LONGEST_QUOTE_CHARS: usize = 200;

/// Repeatability of a request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It would be answered in the same way.
    Never,
    /// A few times: a proxy may have damaged the answer. The word is the reason for metrics.
    AFewTimes(&'static str),
    /// Until the deadline. The word is the reason for metrics.
    UntilDeadline(&'static str),
}

/// A failed attempt.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) again: Again,
    /// Wait that the service asks for (`Retry-After`).
    pub(super) retry_after: Option<Duration>,
    /// Cause, as a clause. May contain a token: only [`super::error`] shows it.
    pub(super) cause: String,
    pub(super) request_id: Option<String>,
    /// The service's code, such as `ObjectNotFound`.
    pub(super) code: Option<String>,
}

/// Body of an error answer.
#[derive(Default, serde::Deserialize)]
struct ErrorBody {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

impl Failure {
    /// A permanent failure.
    pub(super) fn new(kind: ErrorKind, cause: String) -> Self {
        Self { kind, again: Again::Never, retry_after: None, cause, request_id: None, code: None }
    }

    /// An answer that Object Storage never gives; repeated a few times.
    pub(super) fn protocol(cause: impl Into<String>) -> Self {
        Self { again: Again::AFewTimes("protocol"), ..Self::new(ErrorKind::Protocol, cause.into()) }
    }

    /// An answer that is missing or incomplete; repeated until the deadline.
    pub(super) fn unreachable(reason: &'static str, cause: String) -> Self {
        Self { again: Again::UntilDeadline(reason), ..Self::new(ErrorKind::Unreachable, cause) }
    }

    /// The same failure with the request ID in `headers`.
    pub(super) fn with_request_id(self, headers: &HeaderMap) -> Self {
        Self { request_id: request_id(headers), ..self }
    }

    /// The failure that an answer other than 2xx stands for. `body` may be empty (HEAD) or anything (a proxy's page).
    pub(super) fn of_answer(status: StatusCode, headers: &HeaderMap, body: &[u8], now: SystemTime) -> Self {
        // A body that is no JSON is no fault by itself: proxies answer in HTML, and the status is enough to decide.
        let ErrorBody { code, message } = serde_json::from_slice(body).unwrap_or_default();
        let retry_after = object::text(headers, RETRY_AFTER.as_str()).and_then(|value| retry_after(value, now));
        let (kind, again) = meaning(status, code.as_deref(), message.as_deref());

        // The message quotes the service: its code and text are what its documentation and support know.
        let mut cause = format!("the service answered {}", status.as_u16());
        if let Some(code) = &code {
            cause.push_str(&format!(" {}", quote(code)));
        }
        match &message {
            Some(message) => cause.push_str(&format!(" \"{}\"", quote(message))),
            None if code.is_none() => cause.push_str(&format!(" {}", status.canonical_reason().unwrap_or("(no name)"))),
            None => {}
        }
        if let Some(wait) = retry_after {
            cause.push_str(&format!(" (Retry-After {} s)", wait.as_secs()));
        }
        Self { kind, again, retry_after, cause, request_id: request_id(headers), code }
    }

    /// Returns whether the service denies access: the bucket is missing or this PAR does not allow it; the answer is
    /// the same.
    pub(super) fn is_denied(&self) -> bool {
        self.code.as_deref() == Some("BucketNotFound")
    }
}

/// The table of statuses and codes.
fn meaning(status: StatusCode, code: Option<&str>, message: Option<&str>) -> (ErrorKind, Again) {
    use Again::{AFewTimes, Never, UntilDeadline};
    match (status.as_u16(), code) {
        (401, _) if message.is_some_and(|text| text.contains("prefix")) => (ErrorKind::OutsidePrefix, Never),
        (401 | 403, _) | (404, Some("BucketNotFound" | "NamespaceNotFound")) => (ErrorKind::ParNoLongerWorks, Never),
        (404 | 410, _) => (ErrorKind::NotFound, Never),
        // Another write to the same object is under way.
        // IfMatch conflicts and concurrent writes: the other write ends, so waiting helps.
        (409, _) => (ErrorKind::Changed, UntilDeadline("conflict")),
        // 416: a range of the listed version is past the end of the present one.
        (412 | 416, _) => (ErrorKind::Changed, Never),
        (408, _) => (ErrorKind::Unreachable, UntilDeadline("timeout")),
        (429 | 503, _) => (ErrorKind::Throttled, UntilDeadline("throttled")),
        (501, _) => (ErrorKind::InvalidRequest, Never),
        (500..=599, _) => (ErrorKind::ServerFailed, UntilDeadline("server_error")),
        // The MD5 of the body did not match: it was damaged on its way.
        (400, Some("UnmatchedContentMD5")) => (ErrorKind::Protocol, AFewTimes("protocol")),
        (400..=499, _) => (ErrorKind::InvalidRequest, Never),
        // Redirects would carry the token to another host; 1xx and 3xx are nothing that Object Storage answers.
        _ => (ErrorKind::Protocol, Never),
    }
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    object::text(headers, "opc-request-id").map(quote)
}

/// Foreign text on one line and of limited length.
fn quote(text: &str) -> String {
    let mut quoted: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_QUOTE_CHARS).collect();
    if text.chars().nth(LONGEST_QUOTE_CHARS).is_some() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, headers: &[(&'static str, &str)], body: &str) -> Failure {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let status = StatusCode::from_u16(status).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        Failure::of_answer(status, &headers, body.as_bytes(), now)
    }

    #[test]
    fn every_answer_has_one_meaning() {
        use ErrorKind as Kind;
        let html = "<html>502</html>";
        for (status, body, kind, again) in [
            (401, r#"{"code":"NotAuthenticated","message":"PAR does not exist"}"#, Kind::ParNoLongerWorks, None),
            (
                401,
                r#"{"code":"NotAuthenticated","message":"The prefix from the request and the prefix from PAR are not compatible"}"#,
                Kind::OutsidePrefix,
                None,
            ),
            (401, "", Kind::ParNoLongerWorks, None),
            (403, html, Kind::ParNoLongerWorks, None),
            (404, r#"{"code":"BucketNotFound","message":"Either the bucket …"}"#, Kind::ParNoLongerWorks, None),
            (404, r#"{"code":"ObjectNotFound","message":"…"}"#, Kind::NotFound, None),
            (404, html, Kind::NotFound, None),
            (412, r#"{"code":"IfMatchFailed","message":"…"}"#, Kind::Changed, None),
            (416, "", Kind::Changed, None),
            (429, r#"{"code":"TooManyRequests","message":"…"}"#, Kind::Throttled, Some("throttled")),
            (503, html, Kind::Throttled, Some("throttled")),
            (500, "", Kind::ServerFailed, Some("server_error")),
            (502, html, Kind::ServerFailed, Some("server_error")),
            (504, html, Kind::ServerFailed, Some("server_error")),
            (501, "", Kind::InvalidRequest, None),
            (400, r#"{"code":"InvalidObjectName","message":"…"}"#, Kind::InvalidRequest, None),
            (400, r#"{"code":"UnmatchedContentMD5","message":"…"}"#, Kind::Protocol, Some("protocol")),
            (302, "", Kind::Protocol, None),
            (204, "", Kind::Protocol, None),
        ] {
            let failure = answered(status, &[], body);
            let reason = match failure.again {
                Again::Never => None,
                Again::AFewTimes(reason) | Again::UntilDeadline(reason) => Some(reason),
            };
            assert_eq!((failure.kind, reason), (kind, again), "{status} {body}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        for (value, wait) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Thu, 01 Jan 1970 00:02:45 GMT", Some(65)),
            ("Thu, 01 Jan 1970 00:01:39 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            let failure = answered(429, &[("retry-after", value)], "");
            assert_eq!(failure.retry_after, wait.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn foreign_text_is_cut_and_kept_on_one_line() {
        let body = format!(r#"{{"code":"A\nB","message":"{}"}}"#, "m".repeat(300));
        let failure = answered(500, &[("opc-request-id", "id-1")], &body);
        assert_eq!(failure.cause, format!("the service answered 500 A B \"{}…\"", "m".repeat(200)));
        assert_eq!(failure.request_id.as_deref(), Some("id-1"));
        assert_eq!(answered(502, &[], "<html>").cause, "the service answered 502 Bad Gateway");
    }
}

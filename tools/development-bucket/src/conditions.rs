//! Request headers that make a request conditional or partial.

use std::ops::Range;

use axum::http::{HeaderMap, HeaderName, header};

use crate::answer::Refusal;

/// Result of If-Match and If-None-Match for a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Go,
    /// If-None-Match of a read holds this version already.
    NotModified,
}

/// A header's value as text.
pub fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Checks the conditions of a read against the version's ETag.
pub fn check_read(headers: &HeaderMap, etag: &str) -> Result<Verdict, Refusal> {
    check_if_match(headers, Some(etag))?;
    let known = text(headers, header::IF_NONE_MATCH).is_some_and(|wanted| matches(wanted, etag));
    Ok(if known { Verdict::NotModified } else { Verdict::Go })
}

/// Checks the conditions of a write against the version before it, if there is one.
pub fn check_write(headers: &HeaderMap, etag: Option<&str>) -> Result<(), Refusal> {
    check_if_match(headers, etag)?;
    match (text(headers, header::IF_NONE_MATCH), etag) {
        (Some(unwanted), Some(etag)) if matches(unwanted, etag) => Err(Refusal::precondition("If-None-Match")),
        _ => Ok(()),
    }
}

fn check_if_match(headers: &HeaderMap, etag: Option<&str>) -> Result<(), Refusal> {
    match text(headers, header::IF_MATCH) {
        Some(wanted) if !etag.is_some_and(|etag| matches(wanted, etag)) => Err(Refusal::precondition("If-Match")),
        _ => Ok(()),
    }
}

fn matches(wanted: &str, etag: &str) -> bool {
    wanted.split(',').any(|wanted| matches!(wanted.trim().trim_matches('"'), value if value == "*" || value == etag))
}

/// The range asked for of `size_bytes`; `None` asks for all. Several ranges, and what is no range of bytes, are
/// ignored, as RFC 9110 allows.
pub fn range(headers: &HeaderMap, size_bytes: u64) -> Result<Option<Range<u64>>, Refusal> {
    let Some(value) = text(headers, header::RANGE) else { return Ok(None) };
    let Some((first, last)) = value.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    // The last byte is inclusive; a range past the end is cut there, and one that starts past it is refused.
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size_bytes),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..size_bytes,
        (Err(_), Ok(count)) if first.trim().is_empty() => size_bytes.saturating_sub(count)..size_bytes,
        _ => return Ok(None),
    };
    if range.is_empty() { Err(Refusal::range(size_bytes)) } else { Ok(Some(range)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn ranges_are_those_of_the_standard() {
        for (value, expected) in [
            ("bytes=0-0", Some(0..1)),
            ("bytes=2-4", Some(2..5)),
            ("bytes=2-", Some(2..10)),
            ("bytes=-3", Some(7..10)),
            ("bytes=-30", Some(0..10)),
            ("bytes=5-99", Some(5..10)),
            ("bytes=4-2", None),
            ("bytes=0-1,3-4", None),
            ("items=0-1", None),
            ("bytes=-", None),
        ] {
            assert_eq!(range(&with(header::RANGE, value), 10), Ok(expected), "{value}");
        }
        for value in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
            assert_eq!(range(&with(header::RANGE, value), 10).unwrap_err().status, 416, "{value}");
        }
    }

    #[test]
    fn writes_can_be_made_conditional() {
        let create = with(header::IF_NONE_MATCH, "*");
        assert_eq!(check_write(&create, None), Ok(()));
        assert_eq!(check_write(&create, Some("e")).unwrap_err().code, "IfNoneMatchFailed");
        let replace = with(header::IF_MATCH, "e");
        assert_eq!(check_write(&replace, Some("e")), Ok(()));
        for other in [None, Some("f")] {
            assert_eq!(check_write(&replace, other).unwrap_err().code, "IfMatchFailed");
        }
    }
}

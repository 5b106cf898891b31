//! Entry points for fuzzers: the parsers of foreign text, with the invariants of accepted input.

use super::content_range::ContentRange;
use super::listing::read_page;

/// Parses a `Content-Range`, and checks the round trip.
pub fn content_range(text: &str) {
    if let Some(ContentRange { bytes, total }) = ContentRange::parse(text) {
        assert!(bytes.start < bytes.end && total.is_none_or(|total| bytes.end <= total), "{text:?}");
        let total = total.map_or("*".to_owned(), |total| total.to_string());
        let written = format!("bytes {}-{}/{total}", bytes.start, bytes.end - 1);
        assert!(ContentRange::parse(&written).is_some(), "{written}");
    }
}

/// Parses one page of a listing, and checks its order.
pub fn listing(body: &[u8]) {
    let Ok((objects, next)) = read_page(body, "", None, None) else { return };
    let names: Vec<&[u8]> = objects.iter().map(|object| object.name.as_bytes()).collect();
    assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    assert!(next.is_none_or(|next| names.last().is_none_or(|last| *last < next.as_bytes())), "a listing goes on");
}

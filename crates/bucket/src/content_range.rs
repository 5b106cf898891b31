//! The header `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4).

use std::ops::Range;

/// Byte range of a partial answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// Bytes in the body, never empty.
    pub(super) bytes: Range<u64>,
    /// Length of the whole object; `None` for `*`.
    pub(super) total: Option<u64>,
}

impl ContentRange {
    /// Parses the header's value; `None` where it is not a satisfied byte range.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (unit, rest) = value.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = match total {
            "*" => None,
            total => Some(number(total)?),
        };
        // The header's last byte is inclusive, and may be `u64::MAX`.
        let end = last.checked_add(1)?;
        let fits = first < end && total.is_none_or(|total| end <= total);
        fits.then_some(Self { bytes: first..end, total })
    }
}

/// Digits only: `u64::from_str` would also take `+1`.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_a_satisfied_range_is_none() {
        for value in [
            "",
            "bytes",
            "bytes 1-2",
            "bytes */10",
            "bytes -2/10",
            "bytes 1-/10",
            "bytes 2-1/10",
            "bytes 0-10/10",
            "bytes +1-2/10",
            "bytes 1-2/+10",
            "bytes 1-2/ten",
            "items 1-2/10",
            "bytes=1-2/10",
            "bytes 0-18446744073709551615/*",
            "bytes 0-99999999999999999999/*",
        ] {
            assert_eq!(ContentRange::parse(value), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(first in 0..u64::MAX / 2, length in 1..1_u64 << 40, beyond in 0..1_u64 << 40, known: bool) {
            let end = first + length;
            let total = known.then_some(end + beyond);
            let shown = total.map_or("*".to_owned(), |total| total.to_string());
            let parsed = ContentRange::parse(&format!("bytes {first}-{}/{shown}", end - 1));
            prop_assert_eq!(parsed, Some(ContentRange { bytes: first..end, total }));
        }

        #[test]
        fn any_text_is_taken_without_a_panic(text in ".*") {
            let _ = ContentRange::parse(&text);
        }
    }
}

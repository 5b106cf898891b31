//! One version of one object on disk: the names of its files, and its pieces.
//!
//! A piece is the unit that has a checksum. Blocks of the block map consist of whole pieces for every budget, so that
//! processes with different budgets share one file.

use std::ops::Range;

use crc32fast::Hasher;
use md5::{Digest, Md5};

use flashjob_bucket::Object;

/// Extension of the file with an object's bytes, at their offsets.
pub(super) const DATA: &str = "data";
/// Extension of the file with the checksums of its pieces.
pub(super) const CHECKS: &str = "checks";

/// Identity of one version of one object, and its piece length.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// Hash of the identity and stem of both file names: names of objects may be longer than a file's.
    number: u128,
    /// CRC-32 state over the identity: checksums that continue from it match for no other version.
    hasher: Hasher,
    size_bytes: u64,
    piece_bytes: u64,
}

impl Version {
    /// `None` without an ETag, as nothing else identifies a version.
    pub(super) fn of(object: &Object, piece_bytes: u64) -> Option<Self> {
        let etag = object.etag.as_deref()?;
        // Names contain neither newlines nor NUL, so the concatenation is unambiguous.
        let text = format!("{}\n{etag}\n{}\n{piece_bytes}", object.name, object.size_bytes);
        let mut hasher = Hasher::new();
        hasher.update(text.as_bytes());
        let number = u128::from_be_bytes(Md5::digest(text).into());
        Some(Self { number, hasher, size_bytes: object.size_bytes, piece_bytes })
    }

    /// Hash that identifies the version.
    pub(super) fn number(&self) -> u128 {
        self.number
    }

    /// Name of the version's file with extension `kind`.
    pub(super) fn file_name(&self, kind: &str) -> String {
        format!("{:032x}.{kind}", self.number)
    }

    /// Length of the object, in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Number of pieces.
    pub(super) fn pieces(&self) -> u64 {
        self.size_bytes.div_ceil(self.piece_bytes)
    }

    /// Indices of the pieces of `range`, or `None` unless it consists of whole pieces.
    pub(super) fn pieces_of(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let is_edge = |place: u64| place.is_multiple_of(self.piece_bytes) || place == self.size_bytes;
        let whole = range.start < range.end && range.end <= self.size_bytes;
        (whole && is_edge(range.start) && is_edge(range.end))
            .then(|| range.start / self.piece_bytes..range.end.div_ceil(self.piece_bytes))
    }

    /// Byte range of `pieces`.
    pub(super) fn bytes_of(&self, pieces: &Range<u64>) -> Range<u64> {
        pieces.start * self.piece_bytes..self.size_bytes.min(pieces.end * self.piece_bytes)
    }

    /// CRC-32 over the version's identity and `parts`.
    pub(super) fn check(&self, parts: &[&[u8]]) -> u32 {
        let mut hasher = self.hasher.clone();
        parts.iter().for_each(|part| hasher.update(part));
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_whole_pieces_or_none() {
        let etag = Some("etag".to_owned());
        let object = Object { name: "a".to_owned(), size_bytes: 25, etag, modified: None, md5: None };
        let version = Version::of(&object, 10).unwrap();
        assert_eq!(version.pieces(), 3);
        for (range, pieces) in
            [(0..10, Some(0..1)), (10..25, Some(1..3)), (20..25, Some(2..3)), (0..25, Some(0..3)), (0..20, Some(0..2))]
        {
            assert_eq!(version.pieces_of(&range), pieces, "{range:?}");
            assert_eq!(version.bytes_of(&pieces.unwrap()), range);
        }
        for range in [0..5, 5..10, 0..30, 20..24, 25..25, 10..10] {
            assert_eq!(version.pieces_of(&range), None, "{range:?}");
        }
        assert!(Version::of(&Object { etag: None, ..object }, 10).is_none());
    }
}

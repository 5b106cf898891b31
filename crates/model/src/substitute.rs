//! Content found in place of a model's file after a failed download: git-lfs pointers, error pages, nothing.
//!
//! Knows how these begin, and no format of a model.

use super::config_json::BYTE_ORDER_MARK;

/// The first line of every pointer: <https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Enough of a file's beginning to recognise what it is.
pub(super) const BEGINNING_BYTES: usize = 64;

/// Describes what a file that begins with `beginning` is instead of the expected one, and how to get that one, as the
/// rest of a sentence that begins with the file. `None` if nothing is wrong.
pub(super) fn reason(beginning: &[u8]) -> Option<&'static str> {
    let text = beginning.strip_prefix(BYTE_ORDER_MARK).unwrap_or(beginning).trim_ascii_start();
    let begins = |tag: &[u8]| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    if beginning.is_empty() {
        Some("it is empty: its download or upload did not finish; get it again")
    } else if text.starts_with(LFS_POINTER) {
        Some(
            "it is a git-lfs pointer, which stands for the file in a git checkout; run `git lfs pull` there and copy the \
             model again, or download the file itself",
        )
    } else if [&b"<!doctype"[..], b"<html", b"<?xml", b"<error"].into_iter().any(begins) {
        Some("it is a web page or a server's error message, saved in the place of the file; download it again")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substitutes_are_told_by_their_beginning() {
        for (beginning, part) in [
            (&b""[..], "it is empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
            (b"\n<!DOCTYPE html><html>", "web page"),
            (b"\xef\xbb\xbf<?xml version=\"1.0\"?><Error>", "web page"),
        ] {
            assert!(reason(beginning).is_some_and(|reason| reason.contains(part)), "{beginning:?}");
        }
        for beginning in [&b"{}"[..], b"GGUF\x03\0\0\0", b"\x08\0\0\0\0\0\0\0{}", b"{{ messages }}", b"version 3"] {
            assert_eq!(reason(beginning), None, "{beginning:?}");
        }
    }
}

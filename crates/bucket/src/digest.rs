//! Hashes of contents in the service's notation: the MD5 in base64, or for what came in parts the MD5 of the parts' MD5s and
//! their number (Oracle, headers `content-md5` and `opc-multipart-md5`).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};

/// Bytes that are read and hashed at a time.
const PIECE_BYTES: usize = 1 << 20;

/// An MD5 digest, 16 bytes.
pub(super) type Hash = [u8; 16];

pub(super) fn hash(content: &[u8]) -> Hash {
    Md5::digest(content).into()
}

/// Hash of content that came in one piece, in the service's notation.
pub(super) fn of_whole(hash: Hash) -> String {
    STANDARD.encode(hash)
}

/// Hash of content that came in parts, in the service's notation.
pub(super) fn of_parts(parts: &[Hash]) -> String {
    format!("{}-{}", STANDARD.encode(hash(parts.as_flattened())), parts.len())
}

/// Hash of the file at `path` in the service's notation, sent in parts of `part_bytes` if it is longer than one.
pub(super) fn of_file(path: &Path, part_bytes: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut parts: Vec<Hash> = Vec::new();
    loop {
        let (mut hasher, mut part, mut length) = (Md5::new(), (&mut file).take(part_bytes), 0);
        loop {
            match part.read(&mut piece)? {
                0 => break,
                read => {
                    hasher.update(&piece[..read]);
                    length += read as u64;
                }
            }
        }
        // A file may end exactly at the end of a part, after which nothing is read. An empty file is one empty piece.
        if length > 0 || parts.is_empty() {
            parts.push(hasher.finalize().into());
        }
        if length < part_bytes {
            return Ok(if let [whole] = parts[..] { of_whole(whole) } else { of_parts(&parts) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_name_of_its_parts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
        for (length, part, parts) in
            [(0, 10, 1), (10, 10, 1), (11, 10, 2), (20, 10, 2), (3_000_000, 1_000_000, 3), (3_000_000, 2_500_000, 2)]
        {
            std::fs::write(file.path(), &content[..length]).unwrap();
            let hashes: Vec<Hash> = content[..length].chunks(part).map(hash).collect();
            let expected = if parts == 1 { of_whole(hash(&content[..length])) } else { of_parts(&hashes) };
            assert_eq!(of_file(file.path(), part as u64).unwrap(), expected, "{length} in parts of {part}");
            assert_eq!(expected.ends_with(&format!("-{parts}")), parts > 1);
        }
    }
}

//! The content of an object: a file, bytes in memory, or bytes made up by a rule.
//!
//! Large content is streamed in pieces and never held whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use md5::{Digest, Md5};
use parking_lot::Mutex;

/// A piece on its way to a connection: a few of them fit in a processor's cache.
const PIECE_BYTES: u64 = 256 << 10;
/// Buffers kept for the next piece, so that no memory is asked for, or zeroed, on the way.
const MOST_SPARE_BUFFERS: usize = 64;

/// Storage of the bytes.
#[derive(Clone, Debug)]
pub enum Content {
    File(PathBuf),
    Memory(Bytes),
    /// Eight bytes at a time: the number of the word, plus `seed + 1`, times `PATTERN_FACTOR`, little-endian.
    Pattern {
        seed: u64,
    },
}

/// Spreads consecutive numbers over all bits: 2^64 divided by the golden ratio.
const PATTERN_FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// One version of an object.
#[derive(Clone, Debug)]
pub struct Version {
    pub content: Content,
    pub size_bytes: u64,
    pub etag: String,
    pub modified: SystemTime,
}

/// Content that is open: one version, whatever happens to its name.
pub enum Opened {
    File(File),
    Memory(Bytes),
    Pattern { seed: u64 },
}

impl Content {
    pub fn open(&self) -> io::Result<Opened> {
        Ok(match self {
            Content::File(path) => Opened::File(File::open(path)?),
            Content::Memory(bytes) => Opened::Memory(bytes.clone()),
            Content::Pattern { seed } => Opened::Pattern { seed: *seed },
        })
    }
}

impl Opened {
    fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        if let Opened::Memory(bytes) = self {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            return Ok(bytes.slice(start..start + length));
        }
        let mut buffer = Buffer::of(length);
        match self {
            // A served file is in the page cache: a copy here is cheaper than a hop to another thread.
            Opened::File(file) => file.read_exact_at(&mut buffer.0, offset)?,
            Opened::Pattern { seed } => pattern(*seed, offset, &mut buffer.0),
            Opened::Memory(_) => {}
        }
        Ok(Bytes::from_owner(buffer))
    }

    /// The first `size_bytes`, all at once.
    pub fn whole(&self, size_bytes: u64) -> io::Result<Bytes> {
        let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).map_err(io::Error::other)?);
        for piece in self.pieces(size_bytes) {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes.into())
    }

    /// The bytes from `start` to before `end`, as a body.
    pub fn body(self, start: u64, end: u64) -> Body {
        let opened = Arc::new(self);
        Body::from_stream(stream::unfold(start, move |position| {
            let opened = Arc::clone(&opened);
            async move {
                let length = (end - position).min(PIECE_BYTES);
                (length > 0).then(|| (opened.read(position, length as usize), position + length))
            }
        }))
    }

    /// MD5 of the first `size_bytes`. Takes its time: for blocking threads.
    pub fn md5(&self, size_bytes: u64) -> io::Result<[u8; 16]> {
        let mut md5 = Md5::new();
        for piece in self.pieces(size_bytes) {
            md5.update(piece?);
        }
        Ok(md5.finalize().into())
    }

    /// The first `size_bytes`, one piece after the other.
    fn pieces(&self, size_bytes: u64) -> impl Iterator<Item = io::Result<Bytes>> + '_ {
        let starts = (0..size_bytes).step_by(PIECE_BYTES as usize);
        starts.map(move |start| self.read(start, (size_bytes - start).min(PIECE_BYTES) as usize))
    }
}

fn pattern(seed: u64, offset: u64, buffer: &mut [u8]) {
    let word = |number: u64| number.wrapping_add(seed).wrapping_add(1).wrapping_mul(PATTERN_FACTOR).to_le_bytes();
    // A range may begin inside of a word.
    let skipped = (offset % 8) as usize;
    let mut filled = 0;
    let mut number = offset / 8;
    while filled < buffer.len() {
        let word = word(number);
        let from = if filled == 0 { skipped } else { 0 };
        let length = (8 - from).min(buffer.len() - filled);
        buffer[filled..filled + length].copy_from_slice(&word[from..from + length]);
        filled += length;
        number += 1;
    }
}

/// A buffer that goes back to the spare ones when the connection is done with it.
struct Buffer(Vec<u8>);

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

impl Buffer {
    fn of(length: usize) -> Self {
        // Freed and zeroed memory would cost more than the copy into it.
        let spare = SPARE.lock().pop();
        let mut bytes = spare.unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES as usize));
        bytes.resize(length, 0);
        Self(bytes)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = SPARE.lock();
        if spare.len() < MOST_SPARE_BUFFERS {
            spare.push(std::mem::take(&mut self.0));
        }
    }
}

/// A name for a version that looks like the service's: a UUID.
pub fn etag_of(parts: &[&[u8]]) -> String {
    let mut md5 = Md5::new();
    // Lengths separate the parts: ("ab", "c") must differ from ("a", "bc").
    for part in parts {
        md5.update((part.len() as u64).to_le_bytes());
        md5.update(part);
    }
    let hash = format!("{:032x}", u128::from_be_bytes(md5.finalize().into()));
    format!("{}-{}-{}-{}-{}", &hash[..8], &hash[8..12], &hash[12..16], &hash[16..20], &hash[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_pattern_is_the_part_of_the_whole() {
        let mut whole = vec![0; 100];
        pattern(7, 0, &mut whole);
        for start in 0..40 {
            for length in 0..30 {
                let mut part = vec![0; length];
                pattern(7, start as u64, &mut part);
                assert_eq!(part, whole[start..start + length]);
            }
        }
    }
}

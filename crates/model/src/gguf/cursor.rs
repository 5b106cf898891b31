//! Little-endian values one after the other, never past the end of a file and never more than a header may need.

use crate::ReadAt;

/// Largest header in bytes. Real ones are mostly vocabulary: 10 to 20 MB for a quarter of a million tokens.
const LARGEST_HEADER_BYTES: u64 = 64 << 20;

/// Longest string in bytes. The longest real ones are chat templates, below 100 kB.
const LARGEST_STRING_BYTES: u64 = 1 << 20;

/// Longest name or list element in bytes, tokens above all: the format's own limit for keys.
const LARGEST_NAME_BYTES: u64 = (1 << 16) - 1;

/// Most elements of all lists together: one byte each in the file may take 8 to 24 in memory. Vocabularies have up to
/// half a million tokens, each with spelling, kind and score, and as many merges.
const MOST_ELEMENTS: u64 = 8 << 20;

const READ_AHEAD_BYTES: usize = 1 << 20;

/// A position in a file, with a read buffer.
pub(super) struct Cursor<'a> {
    file: &'a dyn ReadAt,
    file_bytes: u64,
    position: u64,
    ahead: Vec<u8>,
    used: usize,
    elements: u64,
}

impl<'a> Cursor<'a> {
    pub fn new(file: &'a dyn ReadAt) -> Result<Self, String> {
        let file_bytes = file.size_bytes().map_err(|error| format!("its size cannot be read: {error}"))?;
        Ok(Self { file, file_bytes, position: 0, ahead: Vec::new(), used: 0, elements: 0 })
    }

    /// Offset of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Fails unless `count` entries of at least `each_bytes` bytes can still follow.
    pub fn expect(&self, what: &str, count: u64, each_bytes: u64) -> Result<(), String> {
        // Claims are checked against the bytes that are left, before anything is allocated for them.
        let left = self.file_bytes.min(LARGEST_HEADER_BYTES).saturating_sub(self.position);
        match count.checked_mul(each_bytes) {
            Some(bytes) if bytes <= left => Ok(()),
            _ => Err(format!("it claims {count} {what} where {left} bytes of header are left: truncated or not GGUF")),
        }
    }

    pub fn u8(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string. Invalid UTF-8 becomes U+FFFD, as in other readers.
    pub fn string(&mut self) -> Result<String, String> {
        self.string_of(LARGEST_STRING_BYTES)
    }

    /// A string that is a name or a token.
    pub fn name(&mut self) -> Result<String, String> {
        self.string_of(LARGEST_NAME_BYTES)
    }

    fn string_of(&mut self, limit: u64) -> Result<String, String> {
        let length = self.u64()?;
        if length > limit {
            return Err(format!("it claims a string of {length} bytes, where {limit} are the limit"));
        }
        self.take(length as usize).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// Fails unless lists of the header may have `count` more elements.
    pub fn expect_elements(&mut self, count: u64) -> Result<(), String> {
        self.elements = self.elements.saturating_add(count);
        match self.elements <= MOST_ELEMENTS {
            true => Ok(()),
            false => Err(format!("its lists have more than {MOST_ELEMENTS} elements")),
        }
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// The next `length` bytes; `length` is at most a string's limit.
    fn take(&mut self, length: usize) -> Result<&[u8], String> {
        if self.ahead.len() - self.used < length {
            self.expect("bytes", length as u64, 1)?;
            // Read ahead: a vocabulary is a million short strings, and from a bucket each read is a request.
            let wanted = (self.file_bytes - self.position).min(READ_AHEAD_BYTES.max(length) as u64);
            self.ahead.resize(wanted as usize, 0);
            self.used = 0;
            let read = self.file.read_exact_at(&mut self.ahead, self.position);
            read.map_err(|error| format!("its header cannot be read: {error}"))?;
        }
        let taken = &self.ahead[self.used..self.used + length];
        self.used += length;
        self.position += length as u64;
        Ok(taken)
    }
}

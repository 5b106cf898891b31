//! Elements of a JSON array, each of a length that fits in memory. Longer ones are passed over without being kept.

use std::io::{self, BufRead};

/// Longest line or element that is looked at. A prompt of a million tokens has a few MiB.
pub(super) const LONGEST_BYTES: usize = 64 << 20;

/// Bytes between two ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Whole(Vec<u8>),
    /// Number of bytes, none of which are kept.
    TooLong(u64),
}

impl Piece {
    /// Sentence that refuses a piece of so many bytes.
    pub(super) fn refusal(bytes: u64) -> String {
        format!("it has {bytes} bytes, and nothing above {} MiB is read; is a line feed missing?", LONGEST_BYTES >> 20)
    }
}

/// Collects a piece.
#[derive(Default)]
struct Room {
    kept: Vec<u8>,
    bytes: u64,
}

impl Room {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        match self.bytes <= LONGEST_BYTES as u64 {
            true => self.kept.extend_from_slice(bytes),
            // Its memory is wanted elsewhere.
            false => self.kept = Vec::new(),
        }
    }

    fn piece(self) -> Piece {
        if self.bytes <= LONGEST_BYTES as u64 { Piece::Whole(self.kept) } else { Piece::TooLong(self.bytes) }
    }
}

/// Mark that ended an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Another one follows.
    Comma,
    /// The array is over.
    Bracket,
    /// The file is over.
    File,
}

/// The next element of a JSON array from behind its opening bracket or a comma, and what ended it. Brackets and texts are told
/// apart, and nothing else: the parser that follows finds mistakes.
pub(super) fn element(file: &mut dyn BufRead) -> io::Result<(Piece, End)> {
    let mut room = Room::default();
    let (mut depth, mut in_text, mut escaped) = (0_u64, false, false);
    loop {
        let buffer = filled(file)?;
        if buffer.is_empty() {
            return Ok((room.piece(), End::File));
        }
        let mut end = None;
        for (position, byte) in buffer.iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                _ if in_text => {}
                b'[' | b'{' => depth += 1,
                b',' if depth == 0 => end = Some((position, End::Comma)),
                b']' if depth == 0 => end = Some((position, End::Bracket)),
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if end.is_some() {
                break;
            }
        }
        room.take(&buffer[..end.map_or(buffer.len(), |(position, _)| position)]);
        let used = end.map_or(buffer.len(), |(position, _)| position + 1);
        file.consume(used);
        if let Some((_, end)) = end {
            return Ok((room.piece(), end));
        }
    }
}

fn filled(file: &mut dyn BufRead) -> io::Result<&[u8]> {
    // Twice, for the borrow: a buffer that is not empty is not filled again.
    while let Err(error) = file.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    file.fill_buf()
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read as _};

    use super::*;

    fn whole(text: &str) -> Piece {
        Piece::Whole(text.into())
    }

    /// A file that comes a few bytes at a time.
    fn slow(text: &str) -> impl BufRead {
        BufReader::with_capacity(3, io::Cursor::new(text.to_owned()))
    }

    #[test]
    fn elements_end_where_nothing_is_open() {
        let mut file = slow(r#"{"a": [1, "],\"}"]} , [[]],7] rest"#);
        for (text, end) in [(r#"{"a": [1, "],\"}"]} "#, End::Comma), (" [[]]", End::Comma), ("7", End::Bracket)] {
            assert_eq!(element(&mut file).unwrap(), (whole(text), end));
        }
        assert_eq!(element(&mut file).unwrap(), (whole(" rest"), End::File));
    }

    #[test]
    fn what_is_too_long_is_passed_over_and_what_follows_is_read() {
        let long = LONGEST_BYTES as u64 + 1;
        let mut elements = BufReader::new(io::repeat(b'1').take(long).chain(",2]".as_bytes()));
        assert_eq!(element(&mut elements).unwrap(), (Piece::TooLong(long), End::Comma));
        assert_eq!(element(&mut elements).unwrap(), (whole("2"), End::Bracket));
    }
}

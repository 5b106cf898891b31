//! Lines of a file, each of a length that fits in memory.

use std::io::{self, BufRead};

/// A line without its line feed.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// All of its bytes.
    Whole(Vec<u8>),
    /// Number of bytes, none of which are kept: more than was asked for.
    TooLong(u64),
}

/// The next line of at most `longest` bytes; none at the end. Longer ones are passed over without being kept: a file that has lost
/// its line feeds is one line.
///
/// # Errors
/// As the reader says.
pub fn next_line(file: &mut dyn BufRead, longest: usize) -> io::Result<Option<Line>> {
    let (mut kept, mut bytes, mut is_at_end) = (Vec::new(), 0_u64, true);
    loop {
        let buffer = match file.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            filled => filled?,
        };
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        let used = part.len() + usize::from(end.is_some());
        is_at_end &= used == 0;
        bytes += part.len() as u64;
        match bytes <= longest as u64 {
            true => kept.extend_from_slice(part),
            // Its memory is wanted elsewhere.
            false => kept = Vec::new(),
        }
        file.consume(used);
        if end.is_some() || used == 0 {
            let line = if bytes <= longest as u64 { Line::Whole(kept) } else { Line::TooLong(bytes) };
            return Ok((!is_at_end).then_some(line));
        }
    }
}

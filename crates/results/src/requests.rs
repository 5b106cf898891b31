//! `requests.jsonl`, line by line: it may be longer than memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::error::{Error, shown};
use super::limits;
use super::request_timing::RequestTiming;

/// Bytes of a line at most: one has some 250.
const LONGEST_LINE_BYTES: u64 = 64 << 10;

/// Lines of a file at most.
const MOST_REQUESTS: u64 = 100_000_000;

/// Reads the timings of a run, one request after another. It ends after the first error.
pub struct Requests {
    file: BufReader<File>,
    name: String,
    line: u64,
    ended: bool,
}

impl Requests {
    /// Opens the file `path`.
    ///
    /// # Errors
    /// As the system says, or where it is no file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { file: BufReader::new(limits::open(path)?), name: shown(path), line: 0, ended: false })
    }

    /// The next request; `None` at the end.
    fn read(&mut self) -> Result<Option<RequestTiming>, Error> {
        let mut line = Vec::new();
        // One byte more than the limit tells a longer line from one of exactly that length.
        let read = self.file.by_ref().take(LONGEST_LINE_BYTES + 1).read_until(b'\n', &mut line);
        read.map_err(|source| Error::Unreadable { path: self.name.clone(), source })?;
        if line.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        let name = format!("{}:{}", self.name, self.line);
        limits::check(line.len(), &name, LONGEST_LINE_BYTES)?;
        if self.line > MOST_REQUESTS {
            return Err(Error::TooLarge { path: self.name.clone(), most: MOST_REQUESTS, what: "lines" });
        }
        serde_json::from_slice(&line).map(Some).map_err(|error| Error::parsing(&name, error))
    }
}

impl Iterator for Requests {
    type Item = Result<RequestTiming, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        // After a line that is too long the next one would begin in its middle.
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

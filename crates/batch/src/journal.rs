//! The journal of a shard: its answers in the order in which they came, each in a line with a checksum.
//!
//! `CRC32 ENTRY KIND INPUT_TOKENS OUTPUT_TOKENS ANSWER`, where the checksum is that of all that follows it. A process that was killed
//! leaves at most one line that is not whole, at the end; it is cut off when the journal is opened again, and so is all that
//! follows a line that a crash of the machine has damaged.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flashjob_event::AnswerKind;

use super::counts::AnswerCounts;

/// Longest line that is taken for an answer when a journal is read again.
const LONGEST_LINE_BYTES: u64 = 1 << 30;

/// Place of an answer in its journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredAnswer {
    offset: u64,
    bytes: u32,
}

impl StoredAnswer {
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }
}

/// A line of the journal.
pub(crate) struct Record {
    pub(crate) entry: u64,
    pub(crate) kind: AnswerKind,
    /// Tokens of the prompt, and generated ones.
    pub(crate) tokens: [u64; 2],
    pub(crate) place: StoredAnswer,
}

impl Record {
    pub(crate) fn counts(&self) -> AnswerCounts {
        AnswerCounts::one(self.kind, self.tokens[0], self.tokens[1])
    }
}

/// Hands each whole record of a journal, with its answer, to `take` until that gives false; gives the bytes of those that were taken.
pub(crate) fn read(from: impl Read, mut take: impl FnMut(Record, &str) -> bool) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 20, from);
    let (mut end, mut line) = (0, Vec::new());
    loop {
        line.clear();
        (&mut reader).take(LONGEST_LINE_BYTES).read_until(b'\n', &mut line)?;
        // What follows a damaged line is given up as well: without a line feed nothing says where the next one begins.
        let Some((record, answer)) = parse(&line, end) else { return Ok(end) };
        if !take(record, answer) {
            return Ok(end);
        }
        end += line.len() as u64;
    }
}

/// A journal that answers are appended to.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// Closed where descriptors are few.
    file: Option<File>,
    end: u64,
    line: Vec<u8>,
}

impl Journal {
    /// Opens the journal at `path`, and hands each of its records to `take`. What is not whole is cut off.
    pub(crate) fn open(path: &Path, mut take: impl FnMut(Record)) -> io::Result<Self> {
        let file = open(path)?;
        let end = read(&file, |record, _| {
            take(record);
            true
        })?;
        // Appended lines would otherwise stand behind half a line, and be lost with it.
        if end < file.metadata()?.len() {
            file.set_len(end)?;
        }
        Ok(Self { path: path.to_owned(), file: Some(file), end, line: Vec::new() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_open(&self) -> bool {
        self.file.is_some()
    }

    /// Gives the descriptor back until it is needed again.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }

    /// Appends the answer of `entry`, which is one line of JSON.
    pub(crate) fn append(
        &mut self,
        entry: u64,
        kind: AnswerKind,
        [input_tokens, output_tokens]: [u64; 2],
        answer: &str,
    ) -> io::Result<StoredAnswer> {
        let head = format!("{entry} {} {input_tokens} {output_tokens} ", kind.name());
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(head.as_bytes());
        checksum.update(answer.as_bytes());
        self.line.clear();
        writeln!(self.line, "{:08x} {head}{answer}", checksum.finalize())?;
        let file = file(&mut self.file, &self.path)?;
        if let Err(error) = file.write_all(&self.line) {
            // Part of a line would hide all that follows it. Where even that fails, reading it again cuts it off.
            let _ = file.set_len(self.end);
            return Err(error);
        }
        // The answer lies behind the head, and before the line feed.
        let start = self.end + (self.line.len() - answer.len() - 1) as u64;
        self.end += self.line.len() as u64;
        Ok(StoredAnswer { offset: start, bytes: answer.len() as u32 })
    }

    /// Writes the answers at `places` to `to`, a line each, and tells the bytes and their checksum.
    pub(crate) fn copy(
        &mut self,
        places: impl Iterator<Item = StoredAnswer>,
        to: &mut impl Write,
    ) -> io::Result<(u64, u32)> {
        let (mut bytes, mut checksum) = (0, crc32fast::Hasher::new());
        let mut reader = BufReader::with_capacity(1 << 18, file(&mut self.file, &self.path)?);
        let mut answer = Vec::new();
        let mut position = reader.seek(SeekFrom::Start(0))?;
        for StoredAnswer { offset, bytes: length } in places {
            // Within the buffer where answers lie close together.
            reader.seek_relative(offset as i64 - position as i64)?;
            answer.resize(length as usize + 1, b'\n');
            reader.read_exact(&mut answer)?;
            position = offset + answer.len() as u64;
            to.write_all(&answer)?;
            checksum.update(&answer);
            bytes += answer.len() as u64;
        }
        Ok((bytes, checksum.finalize()))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

fn file<'a>(file: &'a mut Option<File>, path: &Path) -> io::Result<&'a mut File> {
    match file {
        Some(file) => Ok(file),
        closed => Ok(closed.insert(open(path)?)),
    }
}

/// The record of a whole `line` that begins at `start`, and its answer.
fn parse(line: &[u8], start: u64) -> Option<(Record, &str)> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (checksum, rest) = text.split_once(' ')?;
    // Of everything behind it: an entry's number is as precious as its answer.
    if u32::from_str_radix(checksum, 16).ok()? != crc32fast::hash(rest.as_bytes()) {
        return None;
    }
    let mut fields = rest.splitn(5, ' ');
    let mut next = || fields.next();
    let (entry, kind) = (next()?.parse().ok()?, AnswerKind::named(next()?)?);
    let (tokens, answer) = ([next()?.parse().ok()?, next()?.parse().ok()?], next()?);
    let offset = start + (line.len() - answer.len() - 1) as u64;
    let place = StoredAnswer { offset, bytes: u32::try_from(answer.len()).ok()? };
    Some((Record { entry, kind, tokens, place }, answer))
}

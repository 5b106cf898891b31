//! What is known of a data file: a checksum for each piece that is there, and the seal over all of them.
//!
//! Records of a fixed length at fixed places, each with a check of its own that also covers which piece of which version it
//! is for. So any of them may be written at any time, by any process, be torn or be overwritten by anything: what
//! does not check out is not there. Zeros are what a piece has that was never written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::SystemTime;

use super::seal::Seal;
use super::version::Version;

/// The checksum of a piece, and the check of the record.
const RECORD_BYTES: usize = 8;
/// Records begin here; the seal is before them.
const RECORDS_AT: u64 = 128;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Absent,
    Damaged,
    /// The piece is there, and has this checksum.
    Sum(u32),
}

/// The open file.
pub(super) struct Sidecar(File);

impl Sidecar {
    pub(super) fn open(path: &Path, writable: bool) -> io::Result<Self> {
        super::entry::options(writable).create(writable).truncate(false).open(path).map(Self)
    }

    /// Length of the whole file for `version`.
    pub(super) fn file_bytes(version: &Version) -> u64 {
        RECORDS_AT + version.pieces() * RECORD_BYTES as u64
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// What is known of `pieces`.
    pub(super) fn records(&self, version: &Version, pieces: &Range<u64>) -> io::Result<Vec<Record>> {
        let mut bytes = vec![0; (pieces.end - pieces.start) as usize * RECORD_BYTES];
        let there = read_as_far_as_it_goes(&self.0, &mut bytes, place_of(pieces.start))?;
        bytes[there..].fill(0);
        let parse = |(piece, record): (u64, &[u8])| {
            let (sum, check) = record.split_at(RECORD_BYTES / 2);
            match record.iter().all(|&byte| byte == 0) {
                true => Record::Absent,
                false if check == check_of(version, piece, sum) => Record::Sum(number(sum)),
                false => Record::Damaged,
            }
        };
        Ok(pieces.clone().zip(bytes.chunks_exact(RECORD_BYTES)).map(parse).collect())
    }

    /// Says that the pieces from `first` on are there.
    pub(super) fn record(&self, version: &Version, first: u64, sums: &[u32]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(sums.len() * RECORD_BYTES);
        for (piece, sum) in (first..).zip(sums.iter().map(|sum| sum.to_le_bytes())) {
            bytes.extend_from_slice(&sum);
            bytes.extend_from_slice(&check_of(version, piece, &sum));
        }
        self.0.write_all_at(&bytes, place_of(first))
    }

    /// How the data file looked when all of it was right.
    pub(super) fn seal(&self, version: &Version) -> Option<Seal> {
        let (mut seal, mut check) = ([0; Seal::BYTES], [0; 4]);
        self.0.read_exact_at(&mut seal, 0).ok()?;
        self.0.read_exact_at(&mut check, Seal::BYTES as u64).ok()?;
        (check == version.check(&[&seal]).to_le_bytes()).then(|| Seal::from_bytes(seal))
    }

    pub(super) fn set_seal(&self, version: &Version, seal: &Seal) -> io::Result<()> {
        let check = version.check(&[seal.as_bytes()]).to_le_bytes();
        self.0.write_all_at(&[seal.as_bytes(), &check].concat(), 0)
    }

    /// Notes a use: what was used longest ago is given up first. It is this file's time because the other's is part of
    /// the seal. Where it cannot be set the object is given up sooner; no more than that.
    pub(super) fn touch(&self) {
        let _ = self.0.set_modified(SystemTime::now());
    }
}

fn place_of(piece: u64) -> u64 {
    RECORDS_AT + piece * RECORD_BYTES as u64
}

fn check_of(version: &Version, piece: u64, sum: &[u8]) -> [u8; 4] {
    version.check(&[&piece.to_le_bytes(), sum]).to_le_bytes()
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

fn read_as_far_as_it_goes(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

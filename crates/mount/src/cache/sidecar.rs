//! The checksums of a data file: the CRC-32 of each piece that exists, and the seal over all of them.
//!
//! Records have a fixed length and offset, and a CRC-32 of their own that covers piece and version, too. So any process may
//! write any of them at any time; one that is torn or overwritten fails its check and counts as absent. Zeros stand for a
//! piece that was never written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::SystemTime;

use super::seal::Seal;
use super::version::Version;

/// Length of a record: the CRC-32 of a piece, and a CRC-32 of the record itself.
const RECORD_BYTES: usize = 8;
/// Offset of the first record; the seal lies before it.
const RECORDS_AT: u64 = 128;

/// Content of a piece's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Absent,
    Damaged,
    /// The piece exists and has this CRC-32.
    Sum(u32),
}

/// An open file of checksums.
pub(super) struct Sidecar(File);

impl Sidecar {
    pub(super) fn open(path: &Path, writable: bool) -> io::Result<Self> {
        super::entry::options(writable).create(writable).truncate(false).open(path).map(Self)
    }

    /// Length of the file for `version`, in bytes.
    pub(super) fn file_bytes(version: &Version) -> u64 {
        RECORDS_AT + version.pieces() * RECORD_BYTES as u64
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// Records of `pieces`.
    pub(super) fn records(&self, version: &Version, pieces: &Range<u64>) -> io::Result<Vec<Record>> {
        let mut bytes = vec![0; (pieces.end - pieces.start) as usize * RECORD_BYTES];
        // A file that is too short lacks the last records: zeros stand for absent ones.
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

    /// Records the checksums of the pieces from `first` on.
    pub(super) fn record(&self, version: &Version, first: u64, sums: &[u32]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(sums.len() * RECORD_BYTES);
        for (piece, sum) in (first..).zip(sums.iter().map(|sum| sum.to_le_bytes())) {
            bytes.extend_from_slice(&sum);
            bytes.extend_from_slice(&check_of(version, piece, &sum));
        }
        self.0.write_all_at(&bytes, place_of(first))
    }

    /// The recorded seal, if it is intact.
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

    /// Marks the version as used: eviction is LRU by this file's time, since the data file's own time is part of the
    /// seal. If it cannot be set, the version is evicted sooner.
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

//! One block in one file: its bytes, then what they are, then a checksum over both.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crc32fast::Hasher;
use md5::{Digest, Md5};

use super::space::{Reserved, partial_name};
use crate::bucket::Object;

/// Ends each file, and names this layout.
const MAGIC: [u8; 8] = *b"FJBLOCK1";
/// The checksum, the length of the key, and the magic.
const FIXED_BYTES: usize = 4 + 4 + MAGIC.len();

/// Ends the name of a block.
pub(super) const COMPLETE: &str = "block";
/// Ends the name of what is not a block yet.
pub(super) const PARTIAL: &str = "partial";

/// Which bytes of which version of which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    text: String,
    bytes: u64,
}

impl Key {
    /// `None` for what has no version to tell it from another.
    pub(super) fn of(object: &Object, range: &Range<u64>) -> Option<Self> {
        let etag = object.etag.as_deref()?;
        // Names hold neither newlines nor NUL: no two keys read the same.
        let text = format!("{}\n{etag}\n{}\n{}", object.name, range.start, range.end);
        Some(Self { text, bytes: range.end.checked_sub(range.start)? })
    }

    /// The file's name: any name of an object fits into it.
    pub(super) fn file_name(&self) -> String {
        let hash = u128::from_be_bytes(Md5::digest(&self.text).into());
        format!("{hash:032x}.{COMPLETE}")
    }

    /// Length of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.bytes + (self.text.len() + FIXED_BYTES) as u64
    }

    /// What stands behind the bytes, whose checksum `hasher` has so far.
    fn trailer(&self, mut hasher: Hasher) -> Vec<u8> {
        hasher.update(self.text.as_bytes());
        let mut trailer = self.text.clone().into_bytes();
        trailer.extend_from_slice(&hasher.finalize().to_le_bytes());
        trailer.extend_from_slice(&(self.text.len() as u32).to_le_bytes());
        trailer.extend_from_slice(&MAGIC);
        trailer
    }
}

/// Reads the block of `key` at `path` into `buffer`. False: the file is not that block, or no longer.
pub(super) fn read(path: &Path, key: &Key, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let file = File::open(path)?;
    let file_bytes = key.file_bytes();
    if file.metadata()?.len() != file_bytes {
        return Ok(false);
    }
    buffer.clear();
    buffer.reserve(file_bytes as usize);
    (&file).take(file_bytes).read_to_end(buffer)?;
    if buffer.len() as u64 != file_bytes {
        return Ok(false);
    }
    let (bytes, trailer) = buffer.split_at(key.bytes as usize);
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    if key.trailer(hasher) != trailer {
        return Ok(false);
    }
    buffer.truncate(key.bytes as usize);
    // The time of its last use. Where it cannot be set the block is given up sooner; no more than that.
    let _ = file.set_modified(SystemTime::now());
    Ok(true)
}

/// A block that is being written. Dropped before it is finished, it leaves nothing.
pub(super) struct Pending {
    key: Key,
    file: File,
    partial: PathBuf,
    hasher: Hasher,
    written: u64,
    reserved: Option<Reserved>,
}

impl Pending {
    pub(super) fn create(directory: &Path, key: Key, reserved: Reserved) -> io::Result<Self> {
        let partial = directory.join(partial_name(key.file_bytes()));
        let file = File::options().write(true).create_new(true).open(&partial)?;
        Ok(Self { key, file, partial, hasher: Hasher::new(), written: 0, reserved: Some(reserved) })
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Gives the block its name. It need not be on disk by then: whatever a power cut leaves is checked.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.written != self.key.bytes {
            return Err(io::Error::other(format!("{} bytes came of {}", self.written, self.key.bytes)));
        }
        let trailer = self.key.trailer(std::mem::take(&mut self.hasher));
        self.file.write_all(&trailer)?;
        let path = self.partial.with_file_name(self.key.file_name());
        if let Some(reserved) = &self.reserved
            && reserved.rename(&self.partial, &path)?
        {
            self.reserved = None;
        }
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take() {
            reserved.give_back(&self.partial);
        }
    }
}

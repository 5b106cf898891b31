//! Answers in another place, such as a bucket: the manifest there, and whether what was fetched from there is whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::Error;
use super::identity::Identity;
use super::manifest::{self, FinishedShard, Place};
use super::shards::Layout;

/// Pieces in which a file is read.
const PIECE_BYTES: usize = 1 << 18;

/// The manifest of answers in another place. It names shards that are there: it is written after them.
#[derive(Clone, Debug)]
pub struct RemoteManifest {
    /// The first line.
    header: Vec<u8>,
    shards: BTreeMap<u64, FinishedShard>,
    entries: Option<u64>,
}

impl RemoteManifest {
    /// The manifest of a place that has no shard yet.
    ///
    /// # Errors
    /// An identity that has no form as JSON.
    pub fn new(layout: Layout, identity: &Identity) -> io::Result<Self> {
        Ok(Self { header: manifest::header(layout, identity)?, shards: BTreeMap::new(), entries: None })
    }

    /// Reads the `content` of the manifest that the place has under `name`. A last line that was cut is left out.
    ///
    /// # Errors
    /// Answers of another batch, or a file that is no manifest; `advice` says what to do then.
    pub fn read(
        content: &[u8],
        name: &str,
        advice: &'static str,
        layout: Layout,
        identity: &Identity,
    ) -> Result<Self, Error> {
        let folder = name.rsplit_once('/').map_or(name, |(folder, _)| folder);
        let place = Place { of_batch: folder, of_manifest: name, another_batch: advice, no_manifest: advice };
        // Where the whole lines end matters only to whoever appends, and this content is written anew.
        let (finished, _) = manifest::parse(content, &place, layout, identity)?;
        // Kept byte for byte: another version may have written fields that this one does not know.
        let end = content.iter().position(|byte| *byte == b'\n').map_or(content.len(), |at| at + 1);
        // Of a shard that was answered twice the later record counts.
        let shards = finished.shards.into_iter().map(|shard| (shard.shard, shard)).collect();
        Ok(Self { header: content[..end].to_owned(), shards, entries: finished.entries })
    }

    /// Shards that are there, in order.
    pub fn shards(&self) -> impl Iterator<Item = &FinishedShard> {
        self.shards.values()
    }

    /// Entries of the batch, where an earlier attempt has seen all of them.
    pub fn entries(&self) -> Option<u64> {
        self.entries
    }

    /// Returns whether exactly this shard is there.
    pub fn has(&self, shard: &FinishedShard) -> bool {
        self.shards.get(&shard.shard) == Some(shard)
    }

    /// Adds a shard that is there now.
    pub fn add(&mut self, shard: FinishedShard) {
        self.shards.insert(shard.shard, shard);
    }

    /// Takes out a shard whose file is not there, or is another one.
    pub fn remove(&mut self, shard: u64) {
        self.shards.remove(&shard);
    }

    /// Notes the number of entries of the batch.
    pub fn end(&mut self, entries: u64) {
        self.entries = Some(entries);
    }

    /// Content of the manifest.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut content = self.header.clone();
        // Numbers under fixed names always have a form in JSON.
        manifest::lines(self.shards.values(), self.entries).flatten().for_each(|line| content.extend(line));
        content
    }
}

/// Tells whether the file at `path` has the size, the checksum and the number of lines of `shard`; on the disk for good then.
pub(crate) fn is_content_of(path: &Path, shard: &FinishedShard) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let (mut checksum, mut bytes, mut lines) = (crc32fast::Hasher::new(), 0, 0);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => {
                checksum.update(&piece[..read]);
                lines += piece[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
                bytes += read as u64;
            }
        }
    }
    let is_whole = (bytes, checksum.finalize(), lines) == (shard.bytes, shard.crc32, shard.counts.answers());
    // The manifest on the disk will name it, and must not be older than what it names after a crash.
    if is_whole {
        file.sync_all()?;
    }
    Ok(is_whole)
}

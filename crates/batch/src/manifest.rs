//! The manifest: the identity of a batch in its first line, then a line for each finished shard, and the number of entries once
//! all of them were seen.
//!
//! Lines are only ever added. One that is not whole, as a process leaves it that was killed, is cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::counts::AnswerCounts;
use super::error::Error;
use super::identity::Identity;
use super::shard;
use super::shards::Layout;

/// Version of the format.
const SCHEMA_VERSION: u64 = 1;

/// Longest line: the first one names all files of the input.
const LONGEST_LINE_BYTES: u64 = 64 << 20;

/// Advice where the manifest on the disk is not this batch's.
const ANOTHER_BATCH: &str = "name another results-dir, or remove its manifest.jsonl and outputs to begin anew";

/// Advice where the file on the disk is no manifest.
const NO_MANIFEST: &str = "name another results-dir, or move the file away";

/// Finished shards at most.
const MOST_SHARDS: usize = 10_000_000;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    schema_version: u64,
    #[serde(flatten)]
    layout: Layout,
    #[serde(flatten)]
    identity: Identity,
}

/// A shard whose file is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedShard {
    /// Number of the shard.
    pub shard: u64,
    /// Size of its file.
    pub bytes: u64,
    /// CRC-32 of its file.
    pub crc32: u32,
    /// Numbers of its answers.
    pub counts: AnswerCounts,
}

impl FinishedShard {
    /// Name of its file.
    pub fn file_name(&self) -> String {
        shard::file_name(self.shard)
    }
}

/// A line after the first.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Shard(FinishedShard),
    End { entries: u64 },
}

/// Content of a manifest.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    pub(crate) shards: Vec<FinishedShard>,
    pub(crate) entries: Option<u64>,
}

/// A manifest that is open for adding to it.
#[derive(Debug)]
pub(crate) struct Manifest {
    path: PathBuf,
    file: File,
}

impl Manifest {
    /// Opens the manifest in `directory`, or begins one, and gives the shards that are finished.
    pub(crate) fn open(directory: &Path, layout: Layout, identity: &Identity) -> Result<(Self, Finished), Error> {
        let path = directory.join(layout.manifest_name());
        let mut finished = Finished::default();
        match File::open(&path) {
            Ok(file) => finished = read(file, &path, layout, identity)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => begin(&path, layout, identity)?,
            Err(error) => return Err(Error::io(&path, "opened")(error)),
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path, "opened"))?;
        Ok((Self { path, file }, finished))
    }

    /// Adds a finished shard.
    pub(crate) fn add(&mut self, record: FinishedShard) -> Result<(), Error> {
        self.write(&Line::Shard(record))
    }

    /// Adds the number of all entries.
    pub(crate) fn end(&mut self, entries: u64) -> Result<(), Error> {
        self.write(&Line::End { entries })
    }

    fn write(&mut self, line: &Line) -> Result<(), Error> {
        let mut line = serde_json::to_vec(line).map_err(io::Error::from).map_err(Error::io(&self.path, "written"))?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.map_err(Error::io(&self.path, "written"))
    }
}

/// The first line of a manifest.
pub(crate) fn header(layout: Layout, identity: &Identity) -> io::Result<Vec<u8>> {
    let header = Header { schema_version: SCHEMA_VERSION, layout, identity: identity.clone() };
    let mut line = serde_json::to_vec(&header)?;
    line.push(b'\n');
    Ok(line)
}

/// The lines of finished shards, and of the number of entries.
pub(crate) fn lines<'a>(
    shards: impl Iterator<Item = &'a FinishedShard>,
    entries: Option<u64>,
) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let lines = shards.map(|shard| Line::Shard(*shard)).chain(entries.map(|entries| Line::End { entries }));
    lines.map(|line| {
        let mut line = serde_json::to_vec(&line)?;
        line.push(b'\n');
        Ok(line)
    })
}

/// Writes the first line, all of it or nothing.
fn begin(path: &Path, layout: Layout, identity: &Identity) -> Result<(), Error> {
    let partial = path.with_extension("partial");
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(&header(layout, identity)?)?;
        // Before it has its name: an empty manifest would be taken for a damaged one.
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(Error::io(path, "written"))
}

fn read(file: File, path: &Path, layout: Layout, identity: &Identity) -> Result<Finished, Error> {
    let (directory, name) = (path.parent().unwrap_or(Path::new("")).display().to_string(), path.display().to_string());
    let place =
        Place { of_batch: &directory, of_manifest: &name, another_batch: ANOTHER_BATCH, no_manifest: NO_MANIFEST };
    let (finished, whole) = parse(&file, &place, layout, identity)?;
    // As with journals: the next line must begin where the last whole one ends.
    if whole < file.metadata().map_err(Error::io(path, "read"))?.len() {
        let file = OpenOptions::new().write(true).open(path);
        file.and_then(|file| file.set_len(whole)).map_err(Error::io(path, "written"))?;
    }
    Ok(finished)
}

/// Place that a manifest is read from, as messages name it.
pub(crate) struct Place<'a> {
    /// Name of the place of all answers.
    pub(crate) of_batch: &'a str,
    /// Name of the manifest.
    pub(crate) of_manifest: &'a str,
    /// Advice where the answers are another batch's.
    pub(crate) another_batch: &'static str,
    /// Advice where it is no manifest.
    pub(crate) no_manifest: &'static str,
}

/// Content of a manifest, and the number of its bytes that are whole lines.
pub(crate) fn parse(
    from: impl Read,
    place: &Place<'_>,
    layout: Layout,
    identity: &Identity,
) -> Result<(Finished, u64), Error> {
    let path = Path::new(place.of_manifest);
    let bad =
        |reason: String| Error::Manifest { path: place.of_manifest.to_owned(), reason, advice: place.no_manifest };
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| {
        line.clear();
        (&mut reader).take(LONGEST_LINE_BYTES).read_until(b'\n', line).map_err(Error::io(path, "read"))
    };
    next(&mut line)?;
    let header: Header = match line.strip_suffix(b"\n") {
        Some(whole) => serde_json::from_slice(whole).map_err(|error| bad(format!("its first line is {error}")))?,
        None => return Err(bad("its first line has no end".to_owned())),
    };
    if header.schema_version != SCHEMA_VERSION {
        let found = header.schema_version;
        return Err(bad(format!("it has schema_version {found}, and this version reads {SCHEMA_VERSION}")));
    }
    let difference = layout.difference(&header.layout).or_else(|| identity.difference(&header.identity));
    if let Some(difference) = difference {
        return Err(Error::OtherBatch { place: place.of_batch.to_owned(), difference, advice: place.another_batch });
    }
    let (mut whole, mut finished) = (line.len() as u64, Finished::default());
    while next(&mut line)? > 0 {
        match line.strip_suffix(b"\n").and_then(|text| serde_json::from_slice(text).ok()) {
            Some(Line::Shard(_)) if finished.shards.len() == MOST_SHARDS => {
                return Err(bad(format!("it has more than {MOST_SHARDS} shards")));
            }
            Some(Line::Shard(record)) => finished.shards.push(record),
            Some(Line::End { entries }) => finished.entries = Some(entries),
            None => break,
        }
        whole += line.len() as u64;
    }
    Ok((finished, whole))
}

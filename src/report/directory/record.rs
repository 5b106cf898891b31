//! Record of the files that a run wrote into `results-dir`, a line each: the only ground on which the next run moves anything.
//!
//! A name says nothing, as a home directory may have a `result.json` of its own. Each line therefore holds what tells the run's
//! file from another one of its name, and is on disk before the file has that name, so that a process which is killed at
//! any moment leaves no file that its record does not know. A forged record can do no more than
//! have files of its own owner, under names of results, moved.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use flashjob_results::{RecordedTimeline, Summary, Sweep};

/// The record's name.
pub(super) const RECORD: &str = ".flashjob-run.jsonl";

/// Files of a run, directly in `results-dir`.
pub(super) const FILES: [&str; 8] = [
    "flashjob.log",
    "result.json",
    Summary::FILE,
    "requests.jsonl",
    "outputs.jsonl",
    Sweep::FILE,
    RecordedTimeline::FILE,
    "report.html",
];

/// The folder of runs that wait for MLflow, one folder each.
pub(super) const SPOOL: &str = "mlflow";

/// Far above what a run writes.
const LONGEST_BYTES: u64 = 1 << 20;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    flashjob_run: String,
}

/// Any other line.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct RecordLine {
    name: String,
    mark: Mark,
}

/// Mark that tells a file from another one of the same name.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mark {
    /// It does not change any more: its length, and its time in seconds and nanoseconds.
    Whole { size_bytes: u64, modified: (i64, i64) },
    /// It grows, and begins with this line.
    Begins(String),
    /// Its name is a random number, which identifies it.
    Name,
}

impl Mark {
    /// Mark of a file that is complete and on disk.
    pub(super) fn whole(file: &Metadata) -> Self {
        Self::Whole { size_bytes: file.len(), modified: (file.mtime(), file.mtime_nsec()) }
    }
}

/// The record of the run that writes now.
#[derive(Debug)]
pub(super) struct Record(File);

impl Record {
    /// Begins the record of `run`; there must be none in `directory`.
    pub(super) fn begin(directory: &Path, run: &str) -> io::Result<Self> {
        let file = File::options().append(true).create_new(true).open(directory.join(RECORD))?;
        let record = Self(file);
        record.write(&Header { flashjob_run: run.to_owned() })?;
        File::open(directory)?.sync_all()?;
        Ok(record)
    }

    /// The record that a run has left in `directory`, to be gone on with, and the run's name; `None` where there is none that can be
    /// read.
    pub(super) fn reopen(directory: &Path) -> Option<(Self, String)> {
        let RecordFile::Record(written) = Written::find(directory) else { return None };
        let flags = OFlags::NOFOLLOW.bits() as i32;
        let file = File::options().append(true).custom_flags(flags).open(directory.join(RECORD)).ok()?;
        Some((Self(file), written.run))
    }

    /// Notes that the run is about to give a file its `name`.
    pub(super) fn note(&self, name: &str, mark: Mark) -> io::Result<()> {
        self.write(&RecordLine { name: name.to_owned(), mark })
    }

    /// One line in one call, on disk when this returns.
    fn write(&self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        (&self.0).write_all(&text)?;
        self.0.sync_data()
    }
}

/// Files that an earlier run has written.
#[derive(Debug)]
pub(super) struct Written {
    run: String,
    /// Owner of the record, and so of the files.
    owner: u32,
    entries: Vec<RecordLine>,
}

/// File in the place of a record.
#[derive(Debug)]
pub(super) enum RecordFile {
    Nothing,
    /// A process was killed when it had made the file and written nothing.
    Empty,
    Record(Written),
    /// Something else; why, as the rest of a sentence that begins with it.
    Unreadable(String),
}

impl Written {
    /// Reads the record in `directory`.
    pub(super) fn find(directory: &Path) -> RecordFile {
        let path = directory.join(RECORD);
        // Neither is a link followed, nor a pipe waited for.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match File::options().read(true).custom_flags(flags.bits() as i32).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return RecordFile::Nothing,
            Err(error) => return RecordFile::Unreadable(format!("cannot be read ({error})")),
        };
        match Self::read(&file) {
            Ok(Some(written)) => RecordFile::Record(written),
            Ok(None) => RecordFile::Empty,
            Err(why) => RecordFile::Unreadable(why),
        }
    }

    fn read(file: &File) -> Result<Option<Self>, String> {
        let unreadable = |error: io::Error| format!("cannot be read ({error})");
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err("is no file".to_owned());
        }
        if metadata.len() > LONGEST_BYTES {
            return Err(format!("has {} bytes, more than any record", metadata.len()));
        }
        let mut text = Vec::new();
        file.take(LONGEST_BYTES).read_to_end(&mut text).map_err(unreadable)?;
        if text.is_empty() {
            return Ok(None);
        }
        let mut lines = text.split(|byte| *byte == b'\n');
        let beginning = lines.next().and_then(|line| serde_json::from_slice(line).ok());
        let Some(Header { flashjob_run: run }) = beginning.filter(|begun: &Header| is_run(&begun.flashjob_run)) else {
            return Err("is damaged, or another program's".to_owned());
        };
        // A line that was torn off belongs to a file that never got its name.
        let entries = lines.filter_map(|line| serde_json::from_slice(line).ok());
        let entries = entries.filter(|entry: &RecordLine| is_known(&entry.name)).collect();
        Ok(Some(Self { run, owner: metadata.uid(), entries }))
    }

    /// The run's name.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// Names of everything that may be there of the run, those of unfinished files too.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let finished = self.entries.iter().map(|entry| entry.name.clone());
        finished.chain(FILES.iter().map(|name| unfinished(name, &self.run))).collect()
    }

    /// Tells that the file called `name` in `directory` is what the run wrote.
    pub(super) fn wrote(&self, directory: &Path, name: &str) -> bool {
        let path = directory.join(name);
        let Ok(there) = fs::symlink_metadata(&path) else { return false };
        if there.uid() != self.owner {
            return false;
        }
        if name == SPOOL {
            // The folder is a run's as far as it holds nothing else.
            return there.is_dir()
                && fs::read_dir(&path).is_ok_and(|mut entries| {
                    entries.all(|entry| {
                        let name = entry.ok().and_then(|entry| entry.file_name().into_string().ok());
                        name.is_some_and(|name| self.wrote(directory, &format!("{SPOOL}/{name}")))
                    })
                });
        }
        if FILES.iter().any(|file| name == unfinished(file, &self.run)) {
            return there.is_file();
        }
        self.entries.iter().filter(|entry| entry.name == name).any(|entry| match &entry.mark {
            Mark::Whole { .. } => there.is_file() && Mark::whole(&there) == entry.mark,
            Mark::Begins(line) => there.is_file() && first_line(&path).is_ok_and(|first| first == line.as_bytes()),
            Mark::Name if name.starts_with(SPOOL) => there.is_dir(),
            Mark::Name => there.is_file(),
        })
    }
}

/// The first line of the file at `path`, with its line feed, or as much of it as a record would hold.
fn first_line(path: &Path) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(File::open(path)?).take(LONGEST_BYTES).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Name of the file `name` of `run` until it is complete.
pub(super) fn unfinished(name: &str, run: &str) -> String {
    format!(".{name}.{run}.partial")
}

/// Tells that `text` can name a run, and so a folder.
fn is_run(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Tells that a run writes under `name`: a forged record moves nothing else.
fn is_known(name: &str) -> bool {
    let upload = name.strip_prefix(".upload-").and_then(|rest| rest.strip_suffix(".jsonl"));
    FILES.contains(&name)
        || upload.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        || name.strip_prefix(SPOOL).and_then(|rest| rest.strip_prefix('/')).is_some_and(is_run)
}

//! `results-dir`: files appear whole or not at all, and nothing that was there before is overwritten.
//!
//! An earlier run's files move to `earlier/`; whatever else is there stays as it is and where it is.

mod earlier;
mod page;
mod record;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use flashjob_results::{RecordedTimeline, RequestTiming, Summary, Sweep};

use self::record::{FILES, Mark, Record, SPOOL, unfinished};
use super::result::JobResult;

pub use self::earlier::Moved;
use self::page::PAGE;
pub use self::page::PageError;

const LOG: &str = FILES[0];

/// Folder with the answers of a batch. Unlike the files of a run it stays where it is for the next one.
pub const ANSWERS: &str = "outputs";

/// The directory that takes a run's files.
///
/// While it exists, no other process can open the same one: the directory itself is locked (`flock`), which the kernel undoes
/// when a process ends, however it ends.
#[derive(Clone, Debug)]
pub struct ResultsDirectory {
    path: PathBuf,
    lock: Result<Arc<File>, Arc<io::Error>>,
    run: String,
    /// `None` for a directory that nothing is written to.
    record: Option<Arc<Record>>,
    moved: Option<Moved>,
}

/// Reason for which results cannot be written to a directory, as the rest of a sentence that begins with it.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another job writes there.
    #[error("is in use by another job{}; wait for it, or give this job a directory of its own", holder(.0))]
    InUse(Option<u32>),
    /// A file that no earlier run wrote has a name that this run will use.
    #[error("holds `{name}`, {reason}; move that file away, or give this job another directory")]
    Foreign {
        /// Name of the file.
        name: String,
        /// Reason for not taking it for an earlier run's, as a clause.
        reason: String,
    },
    /// An earlier run's file cannot be moved aside.
    #[error(
        "holds `{name}` of an earlier run, which cannot be moved to `{}` there: {source}; move it away, or give this job another \
         directory",
        folder.display()
    )]
    Earlier {
        /// Name of the file.
        name: String,
        /// Folder that it should go to, in the directory.
        folder: PathBuf,
        /// Reason of the system.
        source: io::Error,
    },
    /// As the file system says.
    #[error("cannot be written: {0}; choose a directory that this user may write")]
    Io(#[from] io::Error),
}

fn holder(process: &Option<u32>) -> String {
    process.map_or(String::new(), |id| format!(" (process {id})"))
}

impl ResultsDirectory {
    /// Makes the directory and begins the record of `run`. The files of the run before it move to `earlier/`, in a folder that
    /// has that run's name.
    ///
    /// # Errors
    /// The directory cannot be made or written, another job has it, or a foreign file has the name of a result. Then
    /// everything is where it was.
    pub fn open(path: &Path, run: &str) -> Result<Self, DirectoryError> {
        fs::create_dir_all(path)?;
        let directory = File::open(path)?;
        // The lock comes before anything is moved: of two jobs that start together one must not tidy up behind the other.
        let locked = flock(&directory, FlockOperation::NonBlockingLockExclusive);
        if locked == Err(Errno::WOULDBLOCK) {
            return Err(DirectoryError::InUse(lock_holder(&directory)));
        }
        let moved = earlier::make_room(path, &directory)?;
        let record = Some(Arc::new(Record::begin(path, run)?));
        // Some network file systems have no locks.
        let lock = locked.map(|()| Arc::new(directory)).map_err(|error| Arc::new(error.into()));
        Ok(Self { path: path.to_owned(), lock, run: run.to_owned(), record, moved })
    }

    /// Reason for which other jobs are not kept away.
    pub fn unlocked(&self) -> Option<&io::Error> {
        self.lock.as_ref().err().map(Arc::as_ref)
    }

    /// A directory that a run has left, to be read.
    pub fn existing(path: &Path) -> Self {
        let lock = Err(Arc::new(io::ErrorKind::Unsupported.into()));
        Self { path: path.to_owned(), lock, run: String::new(), record: None, moved: None }
    }

    /// Files that [`Self::open`] has moved, if there were any.
    pub fn moved(&self) -> Option<&Moved> {
        self.moved.as_ref()
    }

    /// Name of the run that writes here.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of this run that belong to its record, those that exist.
    pub fn files(&self) -> Vec<PathBuf> {
        let names = [
            "result.json",
            Summary::FILE,
            "requests.jsonl",
            "outputs.jsonl",
            Sweep::FILE,
            RecordedTimeline::FILE,
            PAGE,
            LOG,
        ];
        let paths = names.iter().map(|name| self.path.join(name));
        // A link leads to what is not this run's.
        paths.filter(|path| path.symlink_metadata().is_ok_and(|there| there.is_file())).collect()
    }

    /// Files with answers of a batch: shards and journals by name, and behind them the manifests, which name shards.
    pub fn answers(&self) -> Vec<PathBuf> {
        let is = |path: &Path, beginning: &str, kinds: &[&str]| {
            let begins =
                path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(beginning));
            begins && path.extension().is_some_and(|kind| kinds.iter().any(|known| kind == *known))
        };
        let files =
            fs::read_dir(self.path.join(ANSWERS)).into_iter().flatten().filter_map(|file| Some(file.ok()?.path()));
        let mut files: Vec<PathBuf> = files
            .filter(|path| is(path, "outputs-", &["jsonl", "journal"]) || is(path, "manifest", &["jsonl"]))
            .filter(|path| path.symlink_metadata().is_ok_and(|there| there.is_file()))
            .collect();
        files.sort_by_key(|path| (is(path, "manifest", &["jsonl"]), path.clone()));
        files
    }

    /// Makes `flashjob.log`, open for appending. Its first line names the run, by which the next one knows it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn create_log(&self) -> io::Result<File> {
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let line = json!({
            "timestamp": now,
            "level": "info",
            "target": "flashjob::report",
            "message": "this is the log of a run",
            "run": self.run,
        });
        let line = format!("{line}\n");
        let unfinished = self.path.join(unfinished(LOG, &self.run));
        let mut file = File::options().append(true).create_new(true).open(&unfinished)?;
        file.write_all(line.as_bytes())?;
        self.note(LOG, Mark::Begins(line))?;
        fs::rename(unfinished, self.path.join(LOG))?;
        Ok(file)
    }

    /// Notes that the spool of this run for MLflow will have the name `key`, before it is made.
    ///
    /// # Errors
    /// As the file system says.
    pub fn expect_spool(&self, key: &str) -> io::Result<()> {
        self.note(&format!("{SPOOL}/{key}"), Mark::Name)
    }

    /// Notes that an upload will be recorded in the file called `name`, before it is made.
    ///
    /// # Errors
    /// As the file system says.
    pub fn expect_upload(&self, name: &str) -> io::Result<()> {
        self.note(name, Mark::Name)
    }

    /// Writes `result.json`.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_result(&self, result: &JobResult) -> io::Result<()> {
        self.write_document("result.json", &result.to_json())
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_summary(&self, summary: &Summary) -> io::Result<()> {
        self.write_document(Summary::FILE, summary)
    }

    /// Writes `sweep.json`.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_sweep(&self, sweep: &Sweep) -> io::Result<()> {
        self.write_document(Sweep::FILE, sweep)
    }

    fn write_document(&self, name: &str, document: &impl Serialize) -> io::Result<()> {
        self.write(name, |file| {
            serde_json::to_writer_pretty(&mut *file, document)?;
            file.write_all(b"\n")
        })
    }

    /// Writes `requests.jsonl`, a line of timings for each request.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_requests(&self, requests: &[RequestTiming]) -> io::Result<PathBuf> {
        self.write_lines("requests.jsonl", requests.iter())
    }

    /// Writes `outputs.jsonl`, which [`super::outputs()`] gives the lines of.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_outputs(&self, lines: impl Iterator<Item = Value>) -> io::Result<PathBuf> {
        self.write_lines("outputs.jsonl", lines)
    }

    fn write_lines(&self, name: &str, lines: impl Iterator<Item = impl Serialize>) -> io::Result<PathBuf> {
        self.write(name, |file| {
            for line in lines {
                serde_json::to_writer(&mut *file, &line)?;
                file.write_all(b"\n")?;
            }
            Ok(())
        })?;
        Ok(self.path.join(name))
    }

    /// Temporary file, fsync, rename: a reader sees all of it or none of it, also after a power cut.
    fn write(&self, name: &str, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
        let unfinished = self.path.join(unfinished(name, &self.run));
        // The name holds this run's own: an unfinished file that has it is from an earlier attempt of this process.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = BufWriter::new(File::create_new(&unfinished)?);
        fill(&mut file)?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        // On disk before it has its name: after a power cut the name would otherwise stand for an empty file.
        file.sync_all()?;
        self.note(name, Mark::whole(&file.metadata()?))?;
        fs::rename(&unfinished, self.path.join(name))?;
        // The rename is an entry of the directory, which is synchronised by itself.
        File::open(&self.path)?.sync_all()
    }

    fn note(&self, name: &str, mark: Mark) -> io::Result<()> {
        self.record.as_ref().map_or(Ok(()), |record| record.note(name, mark))
    }
}

/// The process that has `directory` locked, where `/proc/locks` shows it: it need not be in this process's namespace.
fn lock_holder(directory: &File) -> Option<u32> {
    let inode = directory.metadata().ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // `1: FLOCK  ADVISORY  WRITE 4711 fe:00:262145 0 EOF`
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, process, place, ..] = words[..] else { return None };
        (place.rsplit(':').next() == Some(inode.as_str())).then(|| process.parse().ok())?
    })
}

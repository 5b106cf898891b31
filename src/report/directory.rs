//! `results-dir`: files appear whole or not at all, and an earlier run's are never overwritten.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::Value;

use super::result::JobResult;
use crate::bench::Measurement;

/// Where earlier runs' files are moved to, one folder a run.
const EARLIER: &str = "earlier";

/// The directory that takes a run's files.
///
/// While it exists, no other process can open the same one: the directory itself is locked (`flock`), which the kernel undoes
/// when a process ends, however it ends.
#[derive(Clone, Debug)]
pub struct ResultsDirectory {
    path: PathBuf,
    lock: Result<Arc<File>, Arc<io::Error>>,
}

/// Why results cannot be written to a directory, as the rest of a sentence that begins with it.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another job writes there.
    #[error("is in use by another job{}; wait for it, or give this job a directory of its own", holder(.0))]
    InUse(Option<u32>),
    /// As the file system says.
    #[error("cannot be written: {0}; choose a directory that this user may write")]
    Io(#[from] io::Error),
}

fn holder(process: &Option<u32>) -> String {
    process.map_or(String::new(), |id| format!(" (process {id})"))
}

impl ResultsDirectory {
    /// Makes the directory. What an earlier run left there moves to `earlier/RUN`, where `RUN` is `run_name`.
    ///
    /// # Errors
    /// The directory cannot be made or written, or another job has it.
    pub fn open(path: &Path, run_name: &str) -> Result<Self, DirectoryError> {
        fs::create_dir_all(path)?;
        let directory = File::open(path)?;
        let lock = match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Arc::new(directory)),
            Err(Errno::WOULDBLOCK) => return Err(DirectoryError::InUse(lock_holder(&directory))),
            // Some network file systems have no locks.
            Err(error) => Err(Arc::new(error.into())),
        };
        let mut left_behind = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_name() != EARLIER && entry.file_name() != "lost+found" {
                left_behind.push(entry.file_name());
            }
        }
        if !left_behind.is_empty() {
            let earlier = path.join(EARLIER).join(run_name);
            fs::create_dir_all(&earlier)?;
            for name in left_behind {
                fs::rename(path.join(&name), earlier.join(&name))?;
            }
        }
        Ok(Self { path: path.to_owned(), lock })
    }

    /// Reason for which other jobs are not kept away.
    pub fn unlocked(&self) -> Option<&io::Error> {
        self.lock.as_ref().err().map(Arc::as_ref)
    }

    /// A directory that a run has left.
    pub fn existing(path: &Path) -> Self {
        let lock = Err(Arc::new(io::ErrorKind::Unsupported.into()));
        Self { path: path.to_owned(), lock }
    }

    /// Where [`Self::open`] has moved what was there before, if anything was.
    pub fn earlier(&self, run_name: &str) -> PathBuf {
        self.path.join(EARLIER).join(run_name)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of this run that belong to its record, those that exist.
    pub fn files(&self) -> Vec<PathBuf> {
        let names = ["result.json", "requests.jsonl", "outputs.jsonl", "flashjob.log"];
        names.iter().map(|name| self.path.join(name)).filter(|path| path.is_file()).collect()
    }

    /// Writes `result.json`.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_result(&self, result: &JobResult) -> io::Result<()> {
        self.write("result.json", |file| {
            serde_json::to_writer_pretty(&mut *file, &result.to_json())?;
            file.write_all(b"\n")
        })
    }

    /// Writes `requests.jsonl`, a line of timings for each request.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_requests(&self, measurement: &Measurement) -> io::Result<PathBuf> {
        self.write_lines("requests.jsonl", measurement.requests.iter())
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
        let temporary = self.path.join(format!(".{name}.partial"));
        let mut file = BufWriter::new(File::create(&temporary)?);
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
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

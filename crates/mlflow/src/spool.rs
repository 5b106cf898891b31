//! A run on disk, complete enough to be sent by another process on another day.
//!
//! `RESULTS/mlflow/KEY/` holds `run.json` (the run as it began, written first), `journal.jsonl` (one [`Record`] a
//! line, appended), `end.json` with `artifacts/` (the run as it ended, and copies of its files, because
//! the next job in the same directory writes new ones), and `delivered.json` (where it is, written last). The
//! file `lock` is locked by the process that writes or sends, and the kernel unlocks it when that process dies. No
//! secrets: credentials come from the environment of the sender.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

use super::group::Membership;
use super::record::{Finite, Record, milliseconds};
use super::{Error, RunEnd, RunKey, RunLink, RunSpec, RunStatus};
use flashjob_config::Tracking;

/// Version of the layout described above. Readers refuse others.
const VERSION: u32 = 1;
/// Name of the directory in the results directory.
const FOLDER: &str = "mlflow";
/// Bytes of the journal that are read at a time.
const CHUNK_BYTES: u64 = 256 * 1024;

/// Content of `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Beginning {
    version: u32,
    pub(super) key: RunKey,
    pub(super) tracking_uri: Url,
    pub(super) workspace: Option<String>,
    pub(super) experiment: String,
    pub(super) run_name: String,
    pub(super) start_time_ms: i64,
    #[serde(default)]
    pub(super) member: Option<Membership>,
    #[serde(default)]
    pub(super) parent: Option<RunKey>,
    pub(super) records: Vec<Record>,
}

/// Content of `end.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) status: RunStatus,
    pub(super) end_time_ms: i64,
    pub(super) metrics: Vec<(String, Finite)>,
    pub(super) tags: Vec<(String, String)>,
    /// Artifact names with `/`, each a file below `artifacts/`.
    pub(super) artifacts: Vec<String>,
    /// Remarks on what could not be recorded.
    pub(super) notes: Vec<String>,
}

/// The directory of a run, held under its lock.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    pub(super) beginning: Beginning,
    journal: Mutex<Journal>,
    // Held, never read: closing the file releases the lock.
    _lock: File,
}

#[derive(Debug)]
struct Journal {
    file: File,
    /// Length in bytes up to which the file holds whole lines.
    length_bytes: u64,
}

/// Part of the journal.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Page {
    pub(super) records: Vec<Record>,
    /// Offset of the next page, in bytes.
    pub(super) next: u64,
    /// Number of lines that are no records.
    pub(super) unreadable_lines: usize,
}

/// Result of [`Spool::open`].
#[derive(Debug)]
pub(super) enum Opened {
    /// A run, now locked.
    Run(Box<Spool>),
    /// Another process holds the lock.
    Locked,
    /// The process that created the directory died before it wrote anything.
    Empty,
}

impl Spool {
    /// Creates the spool of a run and writes its beginning.
    pub(super) fn create(results_dir: &Path, spec: &RunSpec, tracking: &Tracking) -> Result<Self, Error> {
        let directory = results_dir.join(FOLDER).join(spec.key.as_str());
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        let lock = lock_file(&directory)?;
        match lock.try_lock() {
            Ok(()) => {}
            // Some network file systems have no locks. The job works without; a concurrent publish does not.
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %directory.display(), %error, "no file locks here")
            }
            Err(TryLockError::WouldBlock) => {
                return Err(failed("lock", &directory)(io::Error::from(io::ErrorKind::WouldBlock)));
            }
        }
        let params =
            spec.params.iter().map(|(param, value)| Record::Param { param: param.clone(), value: value.clone() });
        let tags = spec.tags.iter().map(|(tag, value)| Record::Tag { tag: tag.clone(), value: value.clone() });
        let beginning = Beginning {
            version: VERSION,
            key: spec.key.clone(),
            tracking_uri: tracking.uri.clone(),
            workspace: tracking.workspace.clone(),
            experiment: tracking.experiment.clone(),
            run_name: spec.run_name.clone(),
            start_time_ms: milliseconds(spec.start),
            member: spec.member.clone(),
            parent: spec.parent.clone(),
            records: params.chain(tags).collect(),
        };
        write_json(&directory.join("run.json"), &beginning)?;
        Self::locked(directory, beginning, lock)
    }

    /// Locks and opens the directory of a run.
    pub(super) fn open(directory: &Path) -> Result<Opened, Error> {
        // The kernel releases the lock when its process dies, so there is no stale lock to clear.
        let lock = lock_file(directory)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Opened::Locked),
            Err(TryLockError::Error(source)) => return Err(failed("lock", directory)(source)),
        }
        // Written last on creation, so that its presence proves a complete beginning.
        let path = directory.join("run.json");
        let Some(beginning) = read_json::<Beginning>(&path)? else { return Ok(Opened::Empty) };
        if beginning.version != VERSION {
            let detail = format!("it has version {} and not {VERSION}", beginning.version);
            return Err(Error::BadSpool { path, detail });
        }
        Ok(Opened::Run(Box::new(Self::locked(directory.to_owned(), beginning, lock)?)))
    }

    /// Directories of all runs in `results_dir`, oldest first.
    pub(super) fn find(results_dir: &Path) -> Result<Vec<PathBuf>, Error> {
        let folder = results_dir.join(FOLDER);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &folder)(error)),
        };
        let mut found = BTreeSet::new();
        for entry in entries {
            let entry = entry.map_err(failed("read", &folder))?;
            if entry.file_type().map_err(failed("read", &entry.path()))?.is_dir() {
                found.insert(entry.path());
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Returns whether the run in `directory`, which another process may hold, has an end.
    pub(super) fn has_ended(directory: &Path) -> bool {
        directory.join("end.json").exists()
    }

    fn locked(directory: PathBuf, beginning: Beginning, lock: File) -> Result<Self, Error> {
        let path = directory.join("journal.jsonl");
        let open = OpenOptions::new().read(true).append(true).create(true).open(&path);
        // Append mode: each write goes to the end, whatever position a reader has set.
        let mut file = open.map_err(failed("open", &path))?;
        let length_bytes = file.seek(SeekFrom::End(0)).map_err(failed("read", &path))?;
        Ok(Self { directory, beginning, journal: Mutex::new(Journal { file, length_bytes }), _lock: lock })
    }

    /// Appends all of `records` to the journal or, after an error, none.
    pub(super) fn append(&self, records: &[Record]) -> Result<(), Error> {
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record).map_err(|error| self.journal_failed("write")(error.into()))?;
            lines.push(b'\n');
        }
        let mut journal = self.journal.lock();
        // The length of whole lines, to which the file is cut after a write that fails.
        let whole = journal.length_bytes;
        if let Err(error) = journal.file.write_all(&lines) {
            // Half a line would damage the next one.
            let undone = journal.file.set_len(whole);
            return Err(self.journal_failed("write")(undone.err().unwrap_or(error)));
        }
        journal.length_bytes += lines.len() as u64;
        Ok(())
    }

    /// Syncs the journal to the disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        let journal = self.journal.lock();
        journal.file.sync_data().map_err(self.journal_failed("flush"))
    }

    /// Reads whole lines from `start` on; an empty page is the end. An unfinished line of a killed process is not part
    /// of the journal.
    pub(super) fn page(&self, start: u64) -> Result<Page, Error> {
        let mut journal = self.journal.lock();
        let mut text = Vec::new();
        journal.file.seek(SeekFrom::Start(start)).map_err(self.journal_failed("read"))?;
        // A line may be longer than a chunk: read on until there is a line break.
        let end = loop {
            let read = (&journal.file).take(CHUNK_BYTES).read_to_end(&mut text);
            let read = read.map_err(self.journal_failed("read"))?;
            match text.iter().rposition(|byte| *byte == b'\n') {
                Some(last) => break last + 1,
                None if read == 0 => break 0,
                None => {}
            }
        };
        let mut page = Page { next: start + end as u64, ..Page::default() };
        for line in text[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(record) => page.records.push(record),
                // A torn line, after a crash of the machine, costs that record and not the run.
                Err(_) => page.unreadable_lines += 1,
            }
        }
        Ok(page)
    }

    /// Copies the run's artifacts and prepares the content of `end.json`. An artifact that cannot be copied becomes a
    /// remark, not an error.
    pub(super) fn prepare_end(&self, end: &RunEnd, results_dir: &Path) -> End {
        let mut notes = Vec::new();
        let mut artifacts = Vec::new();
        for path in &end.artifacts {
            let name = artifact_name(path, results_dir);
            let copy = self.artifact_path(&name);
            // Copied, since the next job in the same results directory overwrites them, perhaps before they are sent.
            let copied = copy.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::copy(path, &copy));
            match copied {
                Ok(_) => artifacts.push(name),
                Err(error) => notes.push(format!("{} is not attached: {error}", path.display())),
            }
        }
        let mut tags = end.tags.clone();
        let mut not_finite = Vec::new();
        let mut metrics = Vec::new();
        for (name, value) in &end.metrics {
            match Finite::new(*value) {
                Some(value) => metrics.push((name.clone(), value)),
                None => not_finite.push(format!("{name}={value}")),
            }
        }
        if !not_finite.is_empty() {
            tags.push(("flashjob.not_finite".to_owned(), not_finite.join(", ")));
        }
        End { status: end.status, end_time_ms: milliseconds(end.at), metrics, tags, artifacts, notes }
    }

    /// Writes the end of the run.
    pub(super) fn write_end(&self, end: &End) -> Result<(), Error> {
        write_json(&self.directory.join("end.json"), end)
    }

    /// The end of the run; `None` while it is active, or if its process died.
    pub(super) fn end(&self) -> Result<Option<End>, Error> {
        read_json(&self.directory.join("end.json"))
    }

    /// Path of the artifact `name` of [`End::artifacts`]; always inside of the spool.
    pub(super) fn artifact_path(&self, name: &str) -> PathBuf {
        // `..` and roots are dropped: names come from a file, which may have been edited.
        let parts = Path::new(name).components().filter(|part| matches!(part, Component::Normal(_)));
        self.directory.join("artifacts").join(parts.collect::<PathBuf>())
    }

    /// Writes values that are too long for MLflow into a file that can be attached.
    pub(super) fn write_long_values(&self, values: &BTreeMap<String, String>) -> Result<PathBuf, Error> {
        let path = self.directory.join("long_values.json");
        write_json(&path, values)?;
        Ok(path)
    }

    /// Records that the server has the run and where, and removes the copies of artifacts.
    pub(super) fn write_delivered(&self, link: &RunLink) -> Result<(), Error> {
        write_json(&self.directory.join("delivered.json"), link)?;
        // Copies are needed no longer, and may be large.
        match fs::remove_dir_all(self.directory.join("artifacts")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.directory)(error)),
            _ => Ok(()),
        }
    }

    /// Location of the run, if all of it was sent.
    pub(super) fn delivered(&self) -> Result<Option<RunLink>, Error> {
        read_json(&self.directory.join("delivered.json"))
    }

    fn journal_failed(&self, action: &'static str) -> impl Fn(io::Error) -> Error + use<> {
        failed(action, &self.directory.join("journal.jsonl"))
    }
}

/// Name of an artifact: its path in the results directory, or else its file name.
fn artifact_name(path: &Path, results_dir: &Path) -> String {
    let inside = match (fs::canonicalize(path), fs::canonicalize(results_dir)) {
        (Ok(path), Ok(results_dir)) => path.strip_prefix(results_dir).map(Path::to_owned).ok(),
        _ => None,
    };
    // Outside of the results directory only the name is kept: a path would tell about the machine.
    let name = inside.unwrap_or_else(|| path.file_name().map(PathBuf::from).unwrap_or_default());
    name.to_string_lossy().into_owned()
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Spool { action, path: path.clone(), source }
}

fn lock_file(directory: &Path) -> Result<File, Error> {
    let path = directory.join("lock");
    OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed("open", &path))
}

/// Replaces the file at `path` atomically, also with respect to a power failure.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let failed = failed("write", path);
    let text = serde_json::to_vec_pretty(value).map_err(|error| failed(error.into()))?;
    // Write, sync, rename: a reader sees the old file or the new one, never a part.
    let draft = path.with_extension("json.part");
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        // The rename is only durable once the directory is synced.
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    });
    written.map_err(failed)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let bad = |error: serde_json::Error| Error::BadSpool { path: path.to_owned(), detail: error.to_string() };
    serde_json::from_slice(&text).map(Some).map_err(bad)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use flashjob_config::{Credentials, Secret};

    fn create(results_dir: &Path) -> Spool {
        let start = SystemTime::now();
        let spec = RunSpec {
            key: RunKey::random(start),
            run_name: "name".to_owned(),
            params: vec![("param".to_owned(), "1".to_owned())],
            tags: vec![("tag".to_owned(), "2".to_owned())],
            start,
            member: None,
            parent: None,
        };
        let tracking = Tracking {
            uri: "http://mlflow:5000".parse().unwrap(),
            experiment: "experiment".to_owned(),
            run_name: None,
            credentials: Credentials::Bearer(Secret::new("s3cret")),
            insecure_tls: false,
            server_cert_path: None,
            workspace: Some("workspace".to_owned()),
        };
        Spool::create(results_dir, &spec, &tracking).unwrap()
    }

    fn tag(value: String) -> Record {
        Record::Tag { tag: "t".to_owned(), value }
    }

    /// The whole journal, page by page.
    fn journal(spool: &Spool) -> (Vec<Record>, usize) {
        let (mut records, mut unreadable, mut position) = (Vec::new(), 0, 0);
        loop {
            let page = spool.page(position).unwrap();
            if page.next == position {
                return (records, unreadable);
            }
            records.extend(page.records);
            unreadable += page.unreadable_lines;
            position = page.next;
        }
    }

    #[test]
    fn a_run_is_taken_over_whole_and_by_one_at_a_time() {
        let results = tempfile::tempdir().unwrap();
        let spool = create(results.path());
        spool.append(&[tag("live".to_owned())]).unwrap();
        let [directory] = &Spool::find(results.path()).unwrap()[..] else { panic!("not one run") };
        assert!(matches!(Spool::open(directory).unwrap(), Opened::Locked));
        let beginning = spool.beginning.clone();
        drop(spool);
        let Opened::Run(spool) = Spool::open(directory).unwrap() else { panic!("not a run") };
        assert_eq!(spool.beginning, beginning);
        assert_eq!(beginning.workspace.as_deref(), Some("workspace"));
        assert_eq!(journal(&spool), (vec![tag("live".to_owned())], 0));
        assert_eq!(spool.end().unwrap(), None);
        // Those who come later add to what is there.
        spool.append(&[tag("more".to_owned())]).unwrap();
        assert_eq!(journal(&spool).0.len(), 2);
    }

    #[test]
    fn lines_longer_than_a_page_and_torn_ones_are_no_trouble() {
        let results = tempfile::tempdir().unwrap();
        let spool = create(results.path());
        let long = tag("x".repeat(3 * CHUNK_BYTES as usize));
        spool.append(&[tag("before".to_owned()), long.clone(), tag("after".to_owned())]).unwrap();
        let path = spool.directory.join("journal.jsonl");
        let torn = [fs::read(&path).unwrap(), b"\xff\n\n{\"tag\":\"t\",\"value\":\"torn".to_vec()].concat();
        fs::write(&path, torn).unwrap();
        assert_eq!(journal(&spool), (vec![tag("before".to_owned()), long, tag("after".to_owned())], 1));
    }

    #[test]
    fn artifacts_stay_inside_whatever_they_are_called() {
        let results = tempfile::tempdir().unwrap();
        let spool = create(results.path());
        for name in ["../../run.json", "/etc/passwd", "a/../../b", "..", ""] {
            let path = spool.artifact_path(name);
            assert!(path.starts_with(spool.directory.join("artifacts")), "{name}: {}", path.display());
            assert!(!path.components().any(|part| part == Component::ParentDir), "{name}: {}", path.display());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_journal_gives_back_what_was_put_in(
            appends in proptest::collection::vec(proptest::collection::vec("\\PC{0,3}|[a-z\n]{60000,90000}", 0..6), 0..6),
        ) {
            let results = tempfile::tempdir().unwrap();
            let spool = create(results.path());
            let mut all = Vec::new();
            for append in appends {
                let records: Vec<Record> = append.into_iter().map(tag).collect();
                spool.append(&records).unwrap();
                all.extend(records);
            }
            prop_assert_eq!(journal(&spool), (all, 0));
        }
    }
}

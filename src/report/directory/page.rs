//! `timeline.json` and `report.html`, which come after the result: they are made of it, and a run is whole without them.

use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flashjob_pages::{MARK, Run, SweptRuns, run_page, sweep_page};
use flashjob_results::{RecordedTimeline, Stored, open};

use super::ResultsDirectory;
use super::record::Record;

/// Name of the page.
pub(super) const PAGE: &str = "report.html";

/// Reason for which there is no page, as a sentence.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The files that it is made of cannot be read.
    #[error(transparent)]
    Unreadable(#[from] flashjob_results::Error),
    /// Another program's file has its name.
    #[error("`{0}` is no report of flashjob and stays as it is; move it away, or render a copy of the directory")]
    Foreign(String),
    /// As the file system says.
    #[error("the report cannot be written to `{path}`: {source}; choose a directory that this user may write")]
    Unwritable {
        /// Path of the page.
        path: String,
        /// Reason of the system.
        source: io::Error,
    },
}

impl ResultsDirectory {
    /// Writes `timeline.json`.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_timeline(&self, timeline: &RecordedTimeline) -> io::Result<()> {
        self.write(RecordedTimeline::FILE, |file| {
            serde_json::to_writer(&mut *file, timeline)?;
            file.write_all(b"\n")
        })
    }

    /// Writes `report.html`, made of the files that are there.
    ///
    /// # Errors
    /// Files that cannot be read, or a page that cannot be written.
    pub fn write_report(&self) -> Result<PathBuf, PageError> {
        let page = match open(&self.path)? {
            Stored::Run(..) => run_page(&Run::read(&self.path)?),
            Stored::Sweep(sweep) => {
                let whole = self.path.canonicalize();
                let name = whole.ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
                sweep_page(&name.unwrap_or_else(|| "sweep".to_owned()), &SweptRuns::read(&sweep))
            }
        };
        let path = self.path.join(PAGE);
        let written = self.write(PAGE, |file| file.write_all(page.as_bytes()));
        written.map_err(|source| PageError::Unwritable { path: path.display().to_string(), source })?;
        Ok(path)
    }

    /// Renders `report.html` again in a directory that a run has left, or a copy of one.
    ///
    /// # Errors
    /// As [`Self::write_report`], and where `report.html` is another program's.
    pub fn render_again(path: &Path) -> Result<PathBuf, PageError> {
        let page = path.join(PAGE);
        if page.symlink_metadata().is_ok() && !is_own(&page) {
            return Err(PageError::Foreign(page.display().to_string()));
        }
        // By root it would become root's, and the next job would find a stranger's file.
        let owner = path.join("result.json").metadata().map(|result| (result.uid(), result.gid()));
        // The next run in this directory moves only files that the record knows as they are.
        let (record, run) =
            Record::reopen(path).map_or((None, "report".to_owned()), |(record, run)| (Some(Arc::new(record)), run));
        let written = Self { record, run, ..Self::existing(path) }.write_report()?;
        if let Ok((user, group)) = owner
            && written.metadata().is_ok_and(|page| page.uid() != user)
        {
            let given = lchown(&written, Some(user), Some(group));
            given.map_err(|source| PageError::Unwritable { path: written.display().to_string(), source })?;
        }
        Ok(written)
    }
}

/// Tells that the file at `path` begins as each report does.
fn is_own(path: &Path) -> bool {
    let mut beginning = vec![0; MARK.len()];
    let is_file = path.symlink_metadata().is_ok_and(|there| there.is_file());
    is_file
        && std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut beginning)).is_ok()
        && beginning == MARK.as_bytes()
}

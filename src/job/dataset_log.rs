//! Lines of a dataset in the log: the first ones that were skipped or failed by their places, and the number of the others.
//!
//! The reasons come from elsewhere, and all of them are in the answers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use flashjob_telemetry::logs;

use super::work::REPORTED;
use crate::backend::RequestError;
use crate::prepare::Place;

/// Entries of a dataset that were refused.
pub struct SkippedLines {
    dataset: PathBuf,
    count: AtomicUsize,
}

impl SkippedLines {
    /// None of `dataset` yet.
    pub fn new(dataset: &Path) -> Self {
        Self { dataset: dataset.to_owned(), count: AtomicUsize::new(0) }
    }

    /// Notes the entry at `place`.
    pub fn note(&self, place: &Place, reason: &str) {
        if self.count.fetch_add(1, Ordering::Relaxed) < REPORTED {
            tracing::warn!(target: logs::DATASET, "{}, {place} is skipped: {reason}", self.dataset.display());
        }
    }

    /// Number of entries.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Says how many there are that were not named.
    pub fn end(&self) {
        let (dataset, skipped) = (self.dataset.display(), self.count());
        if skipped > REPORTED {
            let more = skipped - REPORTED;
            tracing::warn!(target: logs::DATASET, "{dataset}: {more} more are skipped, {skipped} in all");
        }
    }
}

/// Entries that were asked and have no whole answer.
#[derive(Default)]
pub struct FailedLines(AtomicUsize);

impl FailedLines {
    /// Notes the entry at `place`.
    pub fn note(&self, place: &Place, error: &RequestError) {
        if self.0.fetch_add(1, Ordering::Relaxed) < REPORTED {
            tracing::warn!(target: logs::DATASET, "{place} has no whole answer: {error}");
        }
    }

    /// Says how many there are that were not named.
    pub fn end(&self) {
        let failed = self.0.load(Ordering::Relaxed);
        if failed > REPORTED {
            let more = failed - REPORTED;
            tracing::warn!(target: logs::DATASET, "{more} more have no whole answer, {failed} in all");
        }
    }
}

//! The running end of a run's record.

use std::path::Path;
use std::time::Duration;

use super::{Delivery, Error, RunEnd, RunLink, RunSpec};
use crate::config::Tracking;

/// Records one run while it happens. Safe to use from any thread; nothing here waits for the network except
/// [`Tracker::finish`], and that no longer than it is told to.
#[derive(Debug)]
pub struct Tracker {}

impl Tracker {
    /// Writes `spec` into the spool in `results_dir` and begins to send it. Needs no async runtime.
    ///
    /// # Errors
    /// When the spool cannot be written, or the TLS settings of `tracking` cannot be used.
    pub fn start(tracking: &Tracking, spec: &RunSpec, results_dir: &Path) -> Result<Self, Error> {
        let _ = (tracking, spec, results_dir);
        Ok(Self {})
    }

    /// Records a live point. A value that is not finite is dropped and counted.
    pub fn metric(&self, name: &str, value: f64, step: u64) {
        let _ = (name, value, step);
    }

    /// Records a tag that became known after the start.
    pub fn tag(&self, key: &str, value: &str) {
        let _ = (key, value);
    }

    /// Records params that became known after the start.
    pub fn params(&self, params: &[(String, String)]) {
        let _ = params;
    }

    /// Where the run is to be found, once the server has created it.
    pub fn link(&self) -> Option<RunLink> {
        None
    }

    /// Writes `end` to disk, then tries for at most `flush` to have everything on the server. Can be called
    /// again with another end (a job interrupted while it publishes); dropping the future gives up at once.
    pub async fn finish(&mut self, end: RunEnd, flush: Duration) -> Delivery {
        let _ = (end, flush);
        Delivery::Spooled { reason: "sending is not built yet".to_owned() }
    }
}

//! `result.json` of one run.

use std::path::Path;

use serde::Deserialize;

use super::backend::BackendSummary;
use super::environment::Environment;
use super::error::{Error, shown};
use super::limits::{self, LARGEST_RESULT_BYTES};
use super::measurement::MeasurementSummary;
use super::metrics::Metrics;
use super::repeats::Repeats;
use super::run::{InputReport, PhaseSeconds, Status};
use super::settings::Settings;

/// Version of the keys of `result.json`: raised when one changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything that `result.json` says of a run that its readers use. Other keys are passed over.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct RunResult {
    /// Version of flashjob that wrote it.
    pub flashjob_version: String,
    /// Status at the end.
    pub status: Status,
    /// Exit code of the process.
    pub exit_code: u8,
    /// A sentence on the failure.
    #[serde(default)]
    pub error: Option<String>,
    /// Requests that were answered; `None` where the measurement is not complete.
    #[serde(default)]
    num_requests: Option<u64>,
    /// Requests that ended with an error.
    #[serde(default)]
    pub failed_requests: Option<u64>,
    /// Start of the run, RFC 3339 in UTC.
    pub started_at: String,
    /// End of the run, RFC 3339 in UTC.
    pub ended_at: String,
    /// Figures by key: means over the regions where there were several.
    pub metrics: Metrics,
    /// The regions, where there were several.
    #[serde(default)]
    pub repeats: Option<Repeats>,
    /// The measured region; `None` where nothing was measured.
    #[serde(default)]
    pub measurement: Option<MeasurementSummary>,
    /// Duration of each phase.
    #[serde(default, deserialize_with = "limits::list::<_, _, 1000>")]
    pub phases: Vec<PhaseSeconds>,
    /// Report on each mounted input.
    #[serde(default, deserialize_with = "limits::list::<_, _, 1000>")]
    pub inputs: Vec<InputReport>,
    /// Lines or entries of the dataset that were left out.
    #[serde(default)]
    pub skipped_inputs: u64,
    /// Other work of the machine while it measured, each in a sentence.
    #[serde(default, deserialize_with = "limits::list::<_, _, 1000>")]
    pub disturbances: Vec<String>,
    /// Warnings about a workload that is too small, or settings that left the machine idle.
    #[serde(default, deserialize_with = "limits::list::<_, _, 1000>")]
    pub warnings: Vec<String>,
    /// Report of the backend; `None` where it was never loaded.
    #[serde(default)]
    pub backend: Option<BackendSummary>,
    /// The whole configuration.
    pub settings: Settings,
    /// Host, processor, memory.
    #[serde(default)]
    pub environment: Environment,
}

impl RunResult {
    /// Reads the file `path`.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, or is no result of this version.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::parse(&limits::read(path, LARGEST_RESULT_BYTES)?, &shown(path))
    }

    /// Parses the content of a `result.json`, which messages call `name`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self, Error> {
        // A server's bytes come here without a file's limit.
        limits::check(bytes.len(), name, LARGEST_RESULT_BYTES)?;
        check_version(bytes, name)?;
        serde_json::from_slice(bytes).map_err(|error| Error::parsing(name, error))
    }

    /// Regions that were measured.
    pub fn regions(&self) -> usize {
        let one = usize::from(self.measurement.is_some());
        self.repeats.as_ref().map_or(one, |repeats| repeats.regions.len())
    }

    /// Requests of one region that finished, those included that ended with an error; `None` where the measurement is not
    /// complete.
    pub fn finished_requests(&self) -> Option<u64> {
        let finished = self.num_requests?.saturating_add(self.failed_requests.unwrap_or(0));
        Some(finished / self.regions().max(1) as u64)
    }
}

/// Looks at the version before anything else: another one may have other keys.
pub(super) fn check_version(bytes: &[u8], name: &str) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Head {
        schema_version: Option<u64>,
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|error| Error::parsing(name, error))?;
    match head.schema_version {
        None => Err(Error::Foreign(name.to_owned())),
        Some(found) if found != u64::from(SCHEMA_VERSION) => Err(Error::OtherVersion { path: name.to_owned(), found }),
        Some(_) => Ok(()),
    }
}

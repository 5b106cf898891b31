//! `sweep.json`: the combinations of a sweep, each with a directory of its own.

use std::path::{Component, Path, PathBuf};

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::error::{Error, shown};
use super::limits::{self, LARGEST_RESULT_BYTES, MOST_COMBINATIONS};
use super::run::Status;
use super::run_result::{RunResult, SCHEMA_VERSION, check_version};

/// The combinations of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// The results directory of the sweep.
    pub directory: PathBuf,
    /// Combinations by number.
    pub combinations: Vec<Combination>,
}

/// One combination of settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Combination {
    /// Its number, from 1.
    pub number: u64,
    /// Name of its directory in that of the sweep.
    pub directory: String,
    /// Settings that the sweep varies: values by key.
    #[serde(deserialize_with = "limits::map::<_, _, 100>", serialize_with = "as_map")]
    pub settings: Vec<(String, String)>,
    /// State of its run.
    pub status: CombinationStatus,
    /// Exit code of its run.
    #[serde(default)]
    pub exit_code: Option<u8>,
    /// A sentence on the failure or the refusal.
    #[serde(default)]
    pub error: Option<String>,
    /// Generated tokens per second, where it was measured.
    #[serde(default)]
    pub output_tokens_per_second: Option<f64>,
}

/// State of a combination's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CombinationStatus {
    /// Measured, with exact counts.
    Finished,
    /// Ended by an error.
    Failed,
    /// Settings that cannot be run together.
    Refused,
    /// Ended by a signal.
    Killed,
}

impl CombinationStatus {
    /// Name in files and logs.
    pub fn name(self) -> &'static str {
        match self {
            CombinationStatus::Finished => Status::Finished.name(),
            CombinationStatus::Failed => Status::Failed.name(),
            CombinationStatus::Refused => "refused",
            CombinationStatus::Killed => Status::Killed.name(),
        }
    }
}

/// The state of a combination whose run ended so.
impl From<Status> for CombinationStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Finished => CombinationStatus::Finished,
            Status::Failed => CombinationStatus::Failed,
            Status::Killed => CombinationStatus::Killed,
        }
    }
}

impl Sweep {
    /// Reads `sweep.json` of `directory`.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, or is no sweep of this version.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(Self::FILE);
        let name = shown(&path);
        let bytes = limits::read(&path, LARGEST_RESULT_BYTES)?;
        check_version(&bytes, &name)?;
        #[derive(Deserialize)]
        struct Document {
            #[serde(deserialize_with = "limits::list::<_, _, MOST_COMBINATIONS>")]
            combinations: Vec<Combination>,
        }
        let Document { combinations } = serde_json::from_slice(&bytes).map_err(|error| Error::parsing(&name, error))?;
        // A name with separators could lead anywhere.
        let outside = combinations.iter().find(|combination| !is_plain_name(&combination.directory));
        if let Some(Combination { number, directory, .. }) = outside {
            let reason = format!("combination {number} has the directory `{directory}`, which is no plain name");
            return Err(Error::Content { path: name, reason });
        }
        Ok(Self { directory: directory.to_owned(), combinations })
    }

    /// Name of the file.
    pub const FILE: &str = "sweep.json";

    /// Combinations that were measured.
    pub fn finished(&self) -> impl Iterator<Item = &Combination> {
        self.combinations.iter().filter(|combination| combination.status == CombinationStatus::Finished)
    }

    /// The `result.json` of `combination`.
    pub fn result_path(&self, combination: &Combination) -> PathBuf {
        self.directory.join(&combination.directory).join("result.json")
    }

    /// Reads the result of `combination`.
    ///
    /// # Errors
    /// As [`RunResult::read`].
    pub fn result(&self, combination: &Combination) -> Result<RunResult, Error> {
        RunResult::read(&self.result_path(combination))
    }
}

/// The content of the file.
impl Serialize for Sweep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("schema_version", &SCHEMA_VERSION)?;
        map.serialize_entry("combinations", &self.combinations)?;
        map.end()
    }
}

fn as_map<S: Serializer>(entries: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().map(|(key, value)| (key, value)))
}

fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) && !name.contains('/')
}

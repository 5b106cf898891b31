//! `summary.json`: what a pipeline asks of a batch whose job has ended, however it ended.

use std::collections::BTreeMap;
use std::path::Path;

use flashjob_event::AnswerKind;
use serde::{Deserialize, Serialize};

use super::error::{Error, shown};
use super::limits;
use super::run::Status;
use super::run_result::check_version;

/// Bytes of the file at most. It has less than 2 kB, of which a sentence on the failure is the most.
const LARGEST_BYTES: u64 = 1 << 20;

/// State of a batch when a job ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Version of the keys, that of `result.json`.
    pub schema_version: u32,
    /// Version of flashjob that wrote it.
    pub flashjob_version: String,
    /// Status at the end.
    pub status: Status,
    /// Exit code of the process.
    pub exit_code: u8,
    /// A sentence on the failure.
    pub error: Option<String>,
    /// Start of the job, RFC 3339 in UTC.
    pub started_at: String,
    /// End of the job, RFC 3339 in UTC.
    pub ended_at: String,
    /// All answers that there are; `None`, and no keys, where the job ended before it had looked for them.
    #[serde(flatten)]
    pub answers: Option<AnswersSummary>,
    /// The part of this job.
    pub job: JobSummary,
}

/// Answers of a batch, those of earlier jobs included; of a replica's share where there are several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswersSummary {
    /// Lines by outcome.
    pub lines: LineCounts,
    /// Errors by kind.
    pub errors: BTreeMap<AnswerKind, u64>,
    /// Tokens of all answers.
    pub tokens: TokenCounts,
    /// Files of answers.
    pub shards: ShardCounts,
}

/// Lines by outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCounts {
    /// All lines; `None` while not all of them have been read.
    pub total: Option<u64>,
    /// Lines that have an answer, errors included.
    pub answered: u64,
    /// Lines whose answer is no error.
    pub completed: u64,
    /// Lines without an answer; `None` while not all lines have been read.
    pub missing: Option<u64>,
}

/// Tokens of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Tokens of the prompts that were run.
    pub input: u64,
    /// Generated tokens.
    pub output: u64,
}

/// Files of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCounts {
    /// Shards whose file is complete.
    pub finished: u64,
    /// Shards that have answers and wait for others.
    pub unfinished: u64,
}

/// The part of one job in a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobSummary {
    /// Lines that this job has answered.
    pub lines: u64,
    /// From the start of the job to its end, loading included.
    pub seconds: f64,
    /// Duration of the measured region, in which requests ran.
    pub answering_seconds: f64,
    /// `lines` divided by `answering_seconds`; `None` where no request ran.
    pub lines_per_second: Option<f64>,
    /// Price of all machines for `seconds`; `None` where no price is configured.
    pub cost: Option<f64>,
    /// Share of prompt tokens that were found in the prefix cache; `None` where none were looked for.
    pub prefix_cache_hit_rate: Option<f64>,
}

impl Summary {
    /// Name of the file.
    pub const FILE: &str = "summary.json";

    /// Reads `summary.json` of `directory`.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, or is no summary of this version.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(Self::FILE);
        let name = shown(&path);
        let bytes = limits::read(&path, LARGEST_BYTES)?;
        check_version(&bytes, &name)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::parsing(&name, error))
    }
}

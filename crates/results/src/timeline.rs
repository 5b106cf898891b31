//! `timeline.json`: the measured region over time, as runs write it and readers read it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{Error, shown};
use super::limits;
use super::measurement::Limits;
use super::run_result::check_version;

/// Bytes of a `timeline.json` at most; it has some 60 kB.
const LARGEST_BYTES: u64 = 4 << 20;

/// The measured region so far, in slices of equal length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedTimeline {
    /// Version of the keys.
    pub schema_version: u32,
    /// Seconds from the first request to the last fact.
    pub elapsed_seconds: f64,
    /// Length of a slice; the last one may have begun only.
    pub slice_seconds: f64,
    /// Slices from the beginning on.
    #[serde(deserialize_with = "limits::list::<_, _, 10_000>")]
    pub slices: Vec<Slice>,
    /// Blocks in the KV cache; `None` where the backend does not report them.
    pub kv_blocks: Option<u64>,
    /// Limits of the machine; `None` where they were not measured.
    pub limits: Option<Limits>,
    /// Steps put together by kind and intensity; none where the backend does not report what steps need.
    #[serde(deserialize_with = "limits::list::<_, _, 10_000>")]
    pub steps: Vec<StepsAlike>,
}

/// Work and levels of one slice of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// Tokens that were generated.
    pub output_tokens: u64,
    /// Prompt tokens that were computed.
    pub prefill_tokens: u64,
    /// Tokens that sequences decoded in steps.
    pub decode_tokens: u64,
    /// Requests that ended.
    pub finished_requests: u64,
    /// Steps that ended.
    pub steps: u64,
    /// Seconds of these steps.
    pub step_seconds: f64,
    /// Sequences in a step, the mean over steps; `None` without a step.
    pub running: Option<f64>,
    /// Requests that waited, the mean over steps.
    pub waiting: Option<f64>,
    /// Blocks of the KV cache in use, the mean over steps.
    pub kv_blocks_used: Option<f64>,
    /// Power of the GPUs, the mean over samples; `None` without a sample.
    pub power_watts: Option<f64>,
}

/// Steps of one kind whose operations per byte are alike.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepsAlike {
    /// Stages that the steps computed.
    pub kind: StepKind,
    /// Number of steps.
    pub steps: u64,
    /// Floating-point operations that they needed.
    pub flops: f64,
    /// Bytes that they needed.
    pub bytes: f64,
    /// Seconds that they took.
    pub seconds: f64,
}

/// Stages that a step computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Prompt tokens alone.
    Prefill,
    /// Prompt tokens and decoding sequences.
    Mixed,
    /// Decoding sequences alone.
    Decode,
}

impl RecordedTimeline {
    /// Name of the file.
    pub const FILE: &str = "timeline.json";

    /// Reads the timeline of the results directory `directory`; `None` where the run has left none.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, or is no timeline of this version.
    pub fn read(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(Self::FILE);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = limits::read(&path, LARGEST_BYTES)?;
        check_version(&bytes, &shown(&path))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::parsing(&shown(&path), error))
    }
}

//! Settings of object storage: buckets that become files, mount points, destination of results.

use std::path::PathBuf;
use std::time::Duration;

use super::Par;

/// One entry of `input_object_storage`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputStorage {
    /// PAR to mount. `None` if the platform has put files at `location` already.
    pub par: Option<Par>,
    /// Absolute path of the directory at which objects appear.
    pub location: PathBuf,
    /// Upper bound on local disk used for this input.
    pub volume_bytes: Option<u64>,
    /// Object name prefixes to show; empty shows all.
    pub include: Vec<String>,
    /// Object name prefixes to hide, also from `include`.
    pub exclude: Vec<String>,
}

impl InputStorage {
    /// Directory of files unless another is given: there the platform puts models.
    pub const DEFAULT_LOCATION: &str = "/models";
}

/// `output_object_storage`: where `results-dir` is uploaded at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputStorage {
    /// A writable bucket or prefix PAR.
    pub par: Par,
    /// Put before each object name, may be empty.
    pub prefix: String,
}

/// Settings of mounts.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// FUSE, copy, or whichever works.
    pub mode: MountMode,
    /// Budget of the block map; `None`: a share of the memory limit.
    pub memory_bytes: Option<u64>,
    /// Directory that keeps blocks of mounted files between runs, if any.
    pub cache_directory: Option<PathBuf>,
    /// A descriptor of `/dev/fuse` that is mounted at the input's location already; `None`: we mount.
    pub descriptor: Option<i32>,
    /// Time for which an unreachable bucket is retried before a read fails. Default 5 minutes.
    pub storage_timeout: Duration,
}

/// Values of the key `mount-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MountMode {
    /// FUSE, and where the system refuses it, a copy (the log says why).
    Auto,
    /// FUSE or an error.
    Fuse,
    /// A parallel download.
    Copy,
}

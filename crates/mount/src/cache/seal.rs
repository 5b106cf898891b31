//! How a file looked when all of its bytes were known to be right.
//!
//! Whoever writes to a file, or changes its length, changes its `ctime`, which nobody can set: as long as a file looks
//! as it did, its bytes are those that were checked, and nobody need read them again to know. After a power cut
//! that does not hold, so a seal is one of the system's present run.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use md5::{Digest, Md5};

/// Kernels before 6.13 set `ctime` from a clock that advances every 10 ms at worst: two changes within one tick look the
/// same, and one that is older than this is the last of its tick.
const SETTLED: Duration = Duration::from_millis(40);

/// What a file looked like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal([u8; Self::BYTES]);

impl Seal {
    /// Seven numbers and the system's run.
    pub(super) const BYTES: usize = 7 * 8 + 16;

    /// `None` where the system does not tell its runs apart.
    pub(super) fn of(file: &Metadata) -> Option<Self> {
        let times = [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()].map(|part| part as u64);
        let mut bytes = Vec::with_capacity(Self::BYTES);
        for number in [file.dev(), file.ino(), file.size()].into_iter().chain(times) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(run()?);
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// How long to wait until a further change of `file` would show.
pub(super) fn unsettled(file: &Metadata) -> Option<Duration> {
    let changed = SystemTime::UNIX_EPOCH + Duration::new(file.ctime().max(0) as u64, file.ctime_nsec() as u32);
    match SystemTime::now().duration_since(changed) {
        Ok(age) => SETTLED.checked_sub(age).filter(|rest| !rest.is_zero()),
        Err(_) => Some(SETTLED),
    }
}

/// Tells the system's present run from all others.
fn run() -> Option<&'static [u8; 16]> {
    static RUN: OnceLock<Option<[u8; 16]>> = OnceLock::new();
    RUN.get_or_init(|| fs::read("/proc/sys/kernel/random/boot_id").ok().map(|text| Md5::digest(text).into())).as_ref()
}

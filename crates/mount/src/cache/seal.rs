//! A seal: the metadata of a file at a time when all of its bytes were verified.
//!
//! Every write and every change of length updates a file's `ctime`, which no process can set: while the metadata is
//! unchanged, the bytes are those that were verified, without another read. A power failure breaks this, so a seal also
//! names the boot and is void after the next one.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use md5::{Digest, Md5};

/// Age after which a change of `ctime` is final. Kernels before 6.13 take `ctime` from a clock that advances every 10
/// ms at worst: two changes within one tick look the same.
const SETTLED: Duration = Duration::from_millis(40);

/// Metadata of a data file at a time when all of its bytes were verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal([u8; Self::BYTES]);

impl Seal {
    /// Length in bytes: seven numbers and the system's boot ID.
    pub(super) const BYTES: usize = 7 * 8 + 16;

    /// `None` if the system has no boot ID.
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

/// Time to wait until a further change of `file` would change its `ctime`.
pub(super) fn unsettled(file: &Metadata) -> Option<Duration> {
    let changed = SystemTime::UNIX_EPOCH + Duration::new(file.ctime().max(0) as u64, file.ctime_nsec() as u32);
    match SystemTime::now().duration_since(changed) {
        Ok(age) => SETTLED.checked_sub(age).filter(|rest| !rest.is_zero()),
        // A clock that was set back: the age is unknown, so the full time is waited for.
        Err(_) => Some(SETTLED),
    }
}

/// Hash of the boot ID, which differs after each start of the system.
fn run() -> Option<&'static [u8; 16]> {
    static RUN: OnceLock<Option<[u8; 16]>> = OnceLock::new();
    RUN.get_or_init(|| fs::read("/proc/sys/kernel/random/boot_id").ok().map(|text| Md5::digest(text).into())).as_ref()
}

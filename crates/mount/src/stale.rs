//! The kernel's mount table, and removal of mounts that a killed process left.
//!
//! After SIGKILL the kernel keeps the mount and answers `ENOTCONN` for it; nothing can be mounted there until
//! it is detached.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

/// Mounts stacked on one path that are cleared at most.
const MOST_STACKED: usize = 16;

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Device number of the file system, as `MAJOR:MINOR`.
    pub(super) device: String,
    /// Absolute path of the mount point.
    pub(super) path: PathBuf,
    /// Type of the file system: `fuse.flashjob`, `ext4`, …
    pub(super) kind: String,
}

/// The mount that is visible at exactly `location`: the last one where several are stacked.
pub(super) fn mount_at(location: &Path) -> Option<Mount> {
    let table = fs::read("/proc/self/mountinfo").ok()?;
    let location = resolved(location);
    table.split(|&byte| byte == b'\n').filter_map(parse).rfind(|mount| mount.path == location)
}

/// Returns whether anything is mounted at exactly `location`.
pub(super) fn is_mounted(location: &Path) -> bool {
    mount_at(location).is_some()
}

/// Returns whether `error` is the answer of a FUSE mount whose server is gone.
pub(super) fn is_stale_error(error: &std::io::Error) -> bool {
    let gone = [Errno::NOTCONN, Errno::CONNABORTED].map(|errno| Some(errno.raw_os_error()));
    gone.contains(&error.raw_os_error())
}

/// Mounts of processes that are gone, at one location.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Cleared {
    /// Number of those that were detached.
    pub(super) detached: usize,
    /// The system's reason for keeping a further one.
    pub(super) refused: Option<String>,
}

/// Detaches stale mounts at `location`: those whose process is gone. Everything else stays.
pub(super) fn clear(location: &Path) -> Cleared {
    let mut cleared = Cleared::default();
    while cleared.detached < MOST_STACKED {
        // Attributes may be cached for ever; opening the directory asks the server.
        match fs::read_dir(location) {
            Err(error) if is_stale_error(&error) => {}
            _ => return cleared,
        }
        // DETACH, since a stale mount may still be in use by processes that hang in it; NOFOLLOW, since nothing but the
        // location itself is ours.
        match unmount(location, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => cleared.detached += 1,
            Err(errno) => {
                cleared.refused = Some(std::io::Error::from(errno).to_string());
                return cleared;
            }
        }
    }
    cleared
}

/// Like [`clear`], for a process without a log.
pub fn clear_stale(location: &Path) {
    let _ = clear(location);
}

/// `location` with the symbolic links of its parent resolved. The last component is not touched: a stale mount would
/// not answer for it.
pub(super) fn resolved(location: &Path) -> PathBuf {
    match (location.parent().and_then(|parent| parent.canonicalize().ok()), location.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => location.to_owned(),
    }
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let path = unescape(fields.nth(1)?).into();
    // The number of optional fields varies; a dash ends them.
    let kind = fields.skip_while(|field| field != b"-").nth(1)?;
    Some(Mount { device, path, kind: OsStr::from_bytes(kind).to_string_lossy().into_owned() })
}

/// Undoes the octal escapes of spaces, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.get(..3)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        path.push(value.unwrap_or(byte));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table_are_read() {
        let line = br"36 35 0:45 / /mnt/a\040b\134c ro,nosuid master:1 shared:2 - fuse.flashjob flashjob ro,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!((mount.device.as_str(), mount.kind.as_str()), ("0:45", "fuse.flashjob"));
        assert_eq!(mount.path, Path::new(r"/mnt/a b\c"));
        for line in ["", "36 35", "36 35 0:45 / /mnt ro"] {
            assert_eq!(parse(line.as_bytes()), None);
        }
        assert_eq!(mount_at(Path::new("/proc")).unwrap().kind, "proc");
    }

    #[test]
    fn what_is_alive_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("x"), "").unwrap();
        for location in [directory.path(), &directory.path().join("missing"), Path::new("/proc")] {
            assert_eq!(clear(location), Cleared::default());
        }
        assert!(directory.path().join("x").exists() && is_mounted(Path::new("/proc")));
    }
}

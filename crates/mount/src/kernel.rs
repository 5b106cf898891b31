//! Places in the kernel's mount table, and backing files of a FUSE connection: everything of a mount that takes rights.
//!
//! We mount by ourselves (`/dev/fuse` and `mount(2)`), so that a refusal keeps its errno and no helper program is ever looked for.
//! Knows neither buckets nor who answers the kernel.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use fuser::BackingId;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::ioctl;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::stale::{Mount, mount_at};

/// File system type in `/proc/mounts`.
const KIND: &str = "fuse.flashjob";
const SOURCE: &str = "flashjob";

/// Readahead of the kernel. Requests then reach 1 MiB, which the default of 128 KiB does not allow, and a reader of a
/// mapped file has four in flight: with one it waited for each, at two thirds of the speed.
const READAHEAD_KIB: &str = "4096";

/// `FUSE_DEV_IOC_BACKING_CLOSE` of `linux/fuse.h`.
const BACKING_CLOSE: ioctl::Opcode = ioctl::opcode::write::<u32>(229, 2);

/// Usage of a mount's files at the time of its unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Unmounted {
    Idle,
    InUse,
}

/// Mounts of this process, with the device numbers of their file systems, which tell them from later mounts at the same
/// path.
#[derive(Debug, Default)]
pub(super) struct KernelMounts {
    devices: HashMap<PathBuf, String>,
}

impl KernelMounts {
    /// Mounts a new FUSE connection at `location`, whose path has no symbolic link.
    ///
    /// # Errors
    /// The system's refusal and its remedy, in a phrase.
    pub(super) fn mount(&mut self, location: &Path) -> Result<OwnedFd, String> {
        let descriptor = mount_fuse(location)?;
        let Some(Mount { device, .. }) = mount_at(location) else {
            let _ = unmount(location, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            return Err(format!("nothing is mounted at `{}` in /proc/self/mountinfo", location.display()));
        };
        self.devices.insert(location.to_owned(), device);
        Ok(descriptor)
    }

    /// Raises the kernel's readahead. Best effort: containers see `/sys` read-only, and requests stay smaller then.
    pub(super) fn raise_readahead(&self, location: &Path) -> io::Result<()> {
        match self.devices.get(location) {
            Some(device) => fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READAHEAD_KIB),
            None => Ok(()),
        }
    }

    /// Unmounts `location`, also while files are in use. Does nothing if it is not mounted.
    pub(super) fn unmount(&mut self, location: &Path) -> Result<Unmounted, Errno> {
        let Some(device) = self.devices.get(location) else { return Ok(Unmounted::Idle) };
        let is_ours = |mount: &Mount| mount.device == *device && mount.kind == KIND;
        if !mount_at(location).as_ref().is_some_and(is_ours) {
            return Ok(Unmounted::Idle);
        }
        let (result, use_of_it) = match unmount(location, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                // FORCE aborts pending requests: their readers get an error instead of waiting.
                let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                (unmount(location, flags), Unmounted::InUse)
            }
            other => (other, Unmounted::Idle),
        };
        match result {
            // Unmounted already, or the directory is gone: another process was faster.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(use_of_it),
            Err(errno) => Err(errno),
        }
    }
}

/// Registers `file` as a backing file of the FUSE connection `device`. The returned number names it until
/// [`close_backing`].
pub(super) fn open_backing(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
    BackingId::create_raw(device, file)
}

/// Reverts one [`open_backing`].
pub(super) fn close_backing(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the opcode takes a pointer to a 32-bit number and writes nothing.
    let request = unsafe { ioctl::Setter::<BACKING_CLOSE, u32>::new(id) };
    // SAFETY: `device` is an open descriptor, and one that is no FUSE connection refuses the opcode.
    Ok(unsafe { ioctl::ioctl(device, request) }?)
}

fn mount_fuse(location: &Path) -> Result<OwnedFd, String> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let hint = match errno {
            Errno::NOENT => "give the container the device (`--device /dev/fuse`)",
            Errno::ACCESS => "run as a user who may use it",
            Errno::PERM => "the container's device rules deny it (`--device /dev/fuse`, or a device plugin)",
            _ => "load the kernel module `fuse`",
        };
        format!("/dev/fuse cannot be opened ({}): {hint}", message(errno))
    })?;
    let place = open_directory(location)
        .map_err(|errno| format!("`{}` cannot be opened ({})", location.display(), message(errno)))?;
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let options = format!(
        "fd={},rootmode=40000,user_id={user},group_id={group},allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = CString::new(options).map_err(|error| error.to_string())?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    // Mounted over the directory that was opened, whatever its path names meanwhile.
    let target = format!("/proc/self/fd/{}", place.as_raw_fd());
    mount(SOURCE, target, KIND, flags, Some(options.as_c_str())).map_err(|errno| {
        let hint = match errno {
            Errno::PERM | Errno::ACCESS => {
                "mounting takes CAP_SYS_ADMIN (`--cap-add SYS_ADMIN`, on hosts with AppArmor also \
                 `--security-opt apparmor=unconfined`)"
            }
            Errno::NODEV => "load the kernel module `fuse`",
            _ => "see the kernel's log",
        };
        format!("mount(2) is refused ({}): {hint}", message(errno))
    })?;
    Ok(device)
}

/// Opens the directory at `path` without following symbolic links: the requesting process must not lead the mount
/// elsewhere.
fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // Before Linux 5.6, or under a seccomp filter that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::open(path, flags, Mode::empty()),
        other => other,
    }
}

fn message(errno: Errno) -> String {
    io::Error::from(errno).to_string()
}

/// A FUSE connection whose backing files are registered through `mounter`.
pub(super) struct Connection {
    device: OwnedFd,
    mounter: super::Mounter,
}

impl Connection {
    pub(super) fn new(device: OwnedFd, mounter: super::Mounter) -> Self {
        Self { device, mounter }
    }

    pub(super) fn open_backing(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        self.mounter.open_backing(self.device.as_fd(), file)
    }

    pub(super) fn close_backing(&self, id: u32) {
        // The kernel has closed it already if the connection has ended.
        let _ = self.mounter.close_backing(self.device.as_fd(), id);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_link_leads_a_mount_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("real/models")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("real/models", root.join("models")).unwrap();
        for (path, expected) in [
            ("real/models", Ok(())),
            ("link/models", Err(Errno::LOOP)),
            ("models", Err(Errno::NOTDIR)),
            ("file", Err(Errno::NOTDIR)),
            ("missing", Err(Errno::NOENT)),
        ] {
            assert_eq!(open_directory(&root.join(path)).map(drop), expected, "{path}");
        }
    }

    #[test]
    fn only_a_fuse_device_is_one() {
        let null = fs::File::open("/dev/null").unwrap();
        assert!(!crate::descriptor::is_fuse_device(null.as_fd()));
        assert!(open_backing(null.as_fd(), null.as_fd()).is_err() && close_backing(null.as_fd(), 1).is_err());
    }
}

//! A file system in the kernel's mount table: put there, and reliably taken away.
//!
//! We mount by ourselves (`/dev/fuse` and `mount(2)`) and hand the descriptor to `fuser`, so that a refusal
//! keeps its errno and no helper program is ever looked for.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::error::Error;
use super::fuse::Adapter;
use super::stale::{mount_at, resolved};

/// How `/proc/mounts` calls it.
const KIND: &str = "fuse.flashjob";
const SOURCE: &str = "flashjob";
/// Requests then reach 1 MiB, which the kernel's default of 128 KiB does not, and a reader that maps a file has four of them on
/// their way: with one it waited for each, at two thirds of the speed.
const READAHEAD_KIB: &str = "4096";
/// FUSE threads end at once when the kernel lets go; more is only waited for where somebody still holds on.
const LONGEST_JOIN: Duration = Duration::from_secs(2);

/// A mount and the threads that answer for it. Comes down when dropped, also while a panic unwinds.
pub(super) struct Attached {
    location: PathBuf,
    /// Whether the mount is ours to take away: one that was passed in is not.
    is_ours: bool,
    /// The kernel's number for this file system, to tell it from whatever else may be mounted there later.
    device: String,
    session: Option<BackgroundSession>,
}

impl Attached {
    /// Mounts `adapter` at `location`, or serves it through `passed`, a descriptor that is mounted there already.
    ///
    /// # Errors
    /// What the system refused, in a phrase.
    pub(super) fn new(location: &Path, adapter: Adapter, passed: Option<RawFd>) -> Result<Self, String> {
        let location = resolved(location);
        let is_ours = passed.is_none();
        let descriptor = match passed {
            Some(number) => super::descriptor::take(number)?,
            None => mount_fuse(&location)?,
        };
        let Some(device) = mount_at(&location).map(|mount| mount.device) else {
            if is_ours {
                let _ = unmount(&location, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            }
            return Err(format!("nothing is mounted at `{}` in /proc/self/mountinfo", location.display()));
        };
        // From here on, dropping this unmounts.
        let mut attached = Self { location, is_ours, device, session: None };
        let mut config = fuser::Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads());
        let session = Session::from_fd(adapter, descriptor, SessionACL::All, config)
            .and_then(Session::spawn)
            .map_err(|error| format!("the kernel and this process do not agree on FUSE: {error}"))?;
        attached.session = Some(session);
        attached.raise_readahead();
        Ok(attached)
    }

    /// Best effort: containers see `/sys` read-only, and then requests stay smaller.
    fn raise_readahead(&self) {
        let path = format!("/sys/class/bdi/{}/read_ahead_kb", self.device);
        if let Err(error) = fs::write(&path, READAHEAD_KIB) {
            tracing::debug!(path, %error, "readahead keeps the kernel's default");
        }
    }

    /// Takes the mount away, whoever uses it. Once it is gone, does nothing.
    pub(super) fn detach(&mut self) -> Result<(), Error> {
        if !self.is_ours {
            // Its threads end when its owner unmounts it, or with this process.
            self.session = None;
            return Ok(());
        }
        self.unmount()?;
        let Some(session) = self.session.take() else { return Ok(()) };
        let start = Instant::now();
        while !session.guard.is_finished() && start.elapsed() < LONGEST_JOIN {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !session.guard.is_finished() {
            // Somebody unmounted it lazily and still reads: the threads end when they do, or with the process.
            tracing::debug!(location = %self.location.display(), "a file of a detached mount is still in use");
        } else if let Err(error) = session.join() {
            // After an unmount from outside the last request may fail in any way; the mount is gone regardless.
            tracing::debug!(location = %self.location.display(), %error, "the FUSE session ended with an error");
        }
        Ok(())
    }

    fn unmount(&self) -> Result<(), Error> {
        let is_ours = |mount: &super::stale::Mount| mount.device == self.device && mount.kind == KIND;
        if !mount_at(&self.location).as_ref().is_some_and(is_ours) {
            return Ok(());
        }
        let result = match unmount(&self.location, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                tracing::info!(location = %self.location.display(), "the mount is in use: detaching it");
                // FORCE ends requests that wait, so that a reader gets an error instead of waiting for us.
                let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                unmount(&self.location, flags)
            }
            other => other,
        };
        match result {
            // Not mounted, or not even there any more: somebody was faster.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::Unmount { location: self.location.clone(), source: errno.into() }),
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::error!("{error}");
        }
    }
}

/// Threads that take requests: they only ever copy bytes that are there.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4)
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
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let options = format!(
        "fd={},rootmode=40000,user_id={user},group_id={group},allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = CString::new(options).map_err(|error| error.to_string())?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    mount(SOURCE, location, KIND, flags, Some(options.as_c_str())).map_err(|errno| {
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

fn message(errno: Errno) -> String {
    std::io::Error::from(errno).to_string()
}

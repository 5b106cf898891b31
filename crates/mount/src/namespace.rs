//! A user and mount namespace of this process's own: FUSE where mounting takes rights that the process was not given.
//!
//! In it the process has every right over mounts that no other process sees. It must be entered before a second thread
//! exists, so the job enters it first of all. Rights over other users' files are lost in it: a process that has such
//! rights does not enter.

use std::fs;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities};

/// Result of [`enter_if_needed`].
static OUTCOME: OnceLock<Outcome> = OnceLock::new();

#[derive(Debug)]
enum Outcome {
    NotNeeded,
    Entered,
    Refused(String),
}

/// Enters namespaces of this process's own where it may not mount but may use `/dev/fuse`. Call it while there is one
/// thread.
pub fn enter_if_needed() {
    OUTCOME.get_or_init(|| match is_needed() {
        false => Outcome::NotNeeded,
        true => match enter() {
            Ok(()) => Outcome::Entered,
            Err(reason) => Outcome::Refused(reason),
        },
    });
}

/// Returns whether this process is in namespaces of its own.
pub(super) fn is_own() -> bool {
    matches!(OUTCOME.get(), Some(Outcome::Entered))
}

/// Reason why a namespace was refused, if one was tried.
pub(super) fn refusal() -> Option<&'static str> {
    match OUTCOME.get() {
        Some(Outcome::Refused(reason)) => Some(reason),
        _ => None,
    }
}

/// Returns whether this process may mount, as far as that can be told without mounting.
pub fn may_mount() -> bool {
    capabilities(None).is_ok_and(|held| held.effective.contains(CapabilitySet::SYS_ADMIN)) && may_use_fuse()
}

fn is_needed() -> bool {
    // A user namespace takes away rights over files of other users, which such a process has.
    let Ok(held) = capabilities(None) else { return false };
    let keeps_rights = held.effective.intersects(CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_OVERRIDE);
    !keeps_rights && may_use_fuse()
}

fn may_use_fuse() -> bool {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).is_ok()
}

fn enter() -> Result<(), String> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNS;
    // SAFETY: neither flag parts descriptors, memory or signal handlers from those of other threads, which is what the
    // function warns of; with a second thread NEWUSER is refused with EINVAL and changes nothing.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|errno| {
        let hint = match errno {
            Errno::INVAL => "there are threads already",
            Errno::NOSPC => "the system allows no more user namespaces",
            _ => "the container's seccomp profile or the system's settings deny it",
        };
        format!("a user namespace is refused ({}): {hint}", std::io::Error::from(errno))
    })?;
    let write = |file: &str, text: &str| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| format!("/proc/self/{file} cannot be written: {error}"))
    };
    // An unprivileged process may write `gid_map` only after it has denied setgroups (user_namespaces(7)).
    write("setgroups", "deny")?;
    write("uid_map", &format!("{user} {user} 1"))?;
    write("gid_map", &format!("{group} {group} 1"))
}

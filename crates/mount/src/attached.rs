//! A FUSE mount and the threads that answer for it, reliably taken away.

use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Session, SessionACL};

use super::Mounter;
use super::error::Error;
use super::fuse::Adapter;
use super::kernel::Connection;
use super::stale::is_mounted;

/// FUSE threads end at once when the kernel lets go; more is only waited for where a reader still holds on.
const LONGEST_JOIN: Duration = Duration::from_secs(2);

/// A mount and the threads that answer for it. Comes down when dropped, also while a panic unwinds.
pub(super) struct Attached {
    location: PathBuf,
    /// Takes the mount away. One that was passed in is for others to take away.
    owner: Option<Mounter>,
    /// The kernel's end, until it is served.
    device: Option<OwnedFd>,
    session: Option<BackgroundSession>,
}

impl Attached {
    /// Mounts at `location`, or takes `passed`, a descriptor that is mounted there already. Nothing is answered yet.
    ///
    /// # Errors
    /// The system's refusal, in a phrase.
    pub(super) fn new(location: &Path, mounter: &Mounter, passed: Option<RawFd>) -> Result<Self, String> {
        let device = match passed {
            None => mounter.mount(location)?,
            Some(number) => {
                let device = super::descriptor::take(number)?;
                if !is_mounted(location) {
                    return Err(format!("nothing is mounted at `{}` in /proc/self/mountinfo", location.display()));
                }
                device
            }
        };
        let owner = passed.is_none().then(|| mounter.clone());
        Ok(Self { location: location.to_owned(), owner, device: Some(device), session: None })
    }

    /// The connection, for registering backing files.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(super) fn connection(&self, mounter: &Mounter) -> Result<Option<Connection>, String> {
        let device = self.device.as_ref().map(OwnedFd::try_clone).transpose();
        let device = device.map_err(|error| format!("its descriptor cannot be copied: {error}"))?;
        Ok(device.map(|device| Connection::new(device, mounter.clone())))
    }

    /// Has `adapter` answer the kernel, on threads of its own.
    ///
    /// # Errors
    /// The kernel's refusal, in a phrase.
    pub(super) fn serve(&mut self, adapter: Adapter) -> Result<(), String> {
        let Some(device) = self.device.take() else { return Ok(()) };
        let mut config = fuser::Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads());
        let session = Session::from_fd(adapter, device, SessionACL::All, config)
            .and_then(Session::spawn)
            .map_err(|error| format!("the kernel and this process do not agree on FUSE: {error}"))?;
        self.session = Some(session);
        if let Some(mounter) = &self.owner {
            mounter.raise_readahead(&self.location);
        }
        Ok(())
    }

    /// Takes the mount away, whoever uses it. Once it is gone, does nothing.
    pub(super) fn detach(&mut self) -> Result<(), Error> {
        let Some(mounter) = &self.owner else {
            // Its threads end when its owner unmounts it, or with this process.
            self.session = None;
            return Ok(());
        };
        mounter.unmount(&self.location)?;
        let Some(session) = self.session.take() else { return Ok(()) };
        let start = Instant::now();
        while !session.guard.is_finished() && start.elapsed() < LONGEST_JOIN {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !session.guard.is_finished() {
            // It was unmounted lazily and is still read: the threads end when that does, or with the process.
            tracing::debug!(location = %self.location.display(), "a file of a detached mount is still in use");
        } else if let Err(error) = session.join() {
            // After an unmount from outside the last request may fail in any way; the mount is gone regardless.
            tracing::debug!(location = %self.location.display(), %error, "the FUSE session ended with an error");
        }
        Ok(())
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

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

/// Longest wait for FUSE threads. They end at once when the kernel lets go, unless a reader still holds on.
const LONGEST_JOIN: Duration = Duration::from_secs(2);

/// A FUSE mount and the threads that serve it. Unmounted on drop, also while a panic unwinds.
pub(super) struct KernelMount {
    location: PathBuf,
    /// Unmounts on drop. `None` for a mount that was passed in, which its owner unmounts.
    owner: Option<Mounter>,
    /// The `/dev/fuse` descriptor, until it is served.
    device: Option<OwnedFd>,
    session: Option<BackgroundSession>,
}

impl KernelMount {
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

    /// The FUSE connection, for registering backing files.
    pub(super) fn connection(&self, mounter: &Mounter) -> Result<Option<Connection>, String> {
        let device = self.device.as_ref().map(OwnedFd::try_clone).transpose();
        let device = device.map_err(|error| format!("its descriptor cannot be copied: {error}"))?;
        Ok(device.map(|device| Connection::new(device, mounter.clone())))
    }

    /// Serves the kernel's requests through `adapter`, on threads of its own.
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

    /// Unmounts, also while files are in use. Does nothing once unmounted.
    pub(super) fn detach(&mut self) -> Result<(), Error> {
        let Some(mounter) = &self.owner else {
            // The threads end when the owner unmounts, or with this process.
            self.session = None;
            return Ok(());
        };
        mounter.unmount(&self.location)?;
        let Some(session) = self.session.take() else { return Ok(()) };
        let start = Instant::now();
        // Polled: joining a thread that is blocked in a read would hang.
        while !session.guard.is_finished() && start.elapsed() < LONGEST_JOIN {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !session.guard.is_finished() {
            // Unmounted lazily while a file is open: the threads end when it is closed, or with the process.
            tracing::debug!(location = %self.location.display(), "a file of a detached mount is still in use");
        } else if let Err(error) = session.join() {
            // After an unmount from outside, the last request may fail in any way; the mount is gone regardless.
            tracing::debug!(location = %self.location.display(), %error, "the FUSE session ended with an error");
        }
        Ok(())
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::error!("{error}");
        }
    }
}

/// Number of FUSE threads: they only copy bytes that have arrived, so few suffice.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4)
}

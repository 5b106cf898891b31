//! Mounting, by this process if it has the rights, or else by a broker that kept them.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::broker::{self, Client, MountBroker};
use super::error::Error;
use super::kernel::{self, KernelMounts, Unmounted};
use super::stale::{self, resolved};

/// Mounts and unmounts, in this process or through a broker. Clones share one.
#[derive(Clone)]
pub struct Mounter(Arc<Way>);

enum Way {
    ThisProcess(Mutex<KernelMounts>),
    Broker(Client),
}

impl Mounter {
    /// Uses this process's own rights.
    pub fn this_process() -> Self {
        Self(Arc::new(Way::ThisProcess(Mutex::default())))
    }

    /// Mounts through a broker process, which may act at `locations` alone.
    pub fn through_broker(locations: &[PathBuf]) -> io::Result<(Self, MountBroker)> {
        let (client, broker) = broker::pair(locations)?;
        Ok((Self(Arc::new(Way::Broker(client))), broker))
    }

    /// Detaches stale mounts at `location`, with an entry in the log.
    pub(super) fn clear_stale(&self, location: &Path) {
        let cleared = match &*self.0 {
            Way::ThisProcess(_) => Ok(stale::clear(location)),
            Way::Broker(client) => client.clear_stale(location),
        };
        let location = location.display();
        match cleared {
            Ok(cleared) => {
                if cleared.detached > 0 {
                    tracing::info!(%location, mounts = cleared.detached, "detached a mount whose process is gone");
                }
                if let Some(error) = cleared.refused {
                    tracing::warn!(%location, %error, "cannot detach a mount whose process is gone");
                }
            }
            Err(error) => tracing::warn!(%location, %error, "mounts of processes that are gone were not looked for"),
        }
    }

    /// Mounts a new FUSE connection at `location`.
    ///
    /// # Errors
    /// The system's refusal and its remedy, in a phrase.
    pub(super) fn mount(&self, location: &Path) -> Result<OwnedFd, String> {
        match &*self.0 {
            Way::ThisProcess(mounts) => mounts.lock().mount(&resolved(location)),
            Way::Broker(client) => client.mount(location),
        }
    }

    /// Raises the kernel's readahead, see [`KernelMounts::raise_readahead`]. A refusal costs speed only.
    pub(super) fn raise_readahead(&self, location: &Path) {
        let raised = match &*self.0 {
            Way::ThisProcess(mounts) => {
                mounts.lock().raise_readahead(&resolved(location)).map_err(|error| error.to_string())
            }
            Way::Broker(client) => client.raise_readahead(location),
        };
        if let Err(error) = raised {
            tracing::debug!(location = %location.display(), error, "readahead keeps the kernel's default");
        }
    }

    /// Unmounts `location`, also while files are in use. Does nothing if it is not mounted.
    pub(super) fn unmount(&self, location: &Path) -> Result<(), Error> {
        let unmounted = match &*self.0 {
            Way::ThisProcess(mounts) => mounts.lock().unmount(&resolved(location)).map_err(io::Error::from),
            Way::Broker(client) => client.unmount(location),
        };
        match unmounted {
            Ok(Unmounted::Idle) => Ok(()),
            Ok(Unmounted::InUse) => {
                tracing::info!(location = %location.display(), "the mount was in use and is detached");
                Ok(())
            }
            Err(source) => Err(Error::Unmount { location: location.to_owned(), source }),
        }
    }

    pub(super) fn open_backing(&self, device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
        match &*self.0 {
            Way::ThisProcess(_) => kernel::open_backing(device, file),
            Way::Broker(client) => client.open_backing(device, file),
        }
    }

    pub(super) fn close_backing(&self, device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
        match &*self.0 {
            Way::ThisProcess(_) => kernel::close_backing(device, id),
            Way::Broker(client) => client.close_backing(device, id),
        }
    }
}

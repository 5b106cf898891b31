//! A descriptor of `/dev/fuse` that this process inherited, mounted already by a process with the rights.
//!
//! A CSI driver or a launcher opens `/dev/fuse`, mounts it at the location, and passes the descriptor on; serving it
//! takes no rights at all.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;

/// Target of a FUSE connection's descriptor in `/proc/self/fd`.
const FUSE_DEVICE: &str = "/dev/fuse";

/// Takes ownership of descriptor `number`, which is possible once.
pub(super) fn take(number: RawFd) -> Result<OwnedFd, String> {
    let link =
        link(number).map_err(|error| format!("descriptor {number} is not open ({error}): pass it to this process"))?;
    if link.as_os_str() != FUSE_DEVICE {
        return Err(format!("descriptor {number} is `{}`, not /dev/fuse", link.display()));
    }
    // SAFETY: the descriptor is open, as its link shows, and no other value owns it: it was inherited, no code
    // of ours opens /dev/fuse before, and a mount takes it once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Tells that `descriptor` is a FUSE device.
pub(super) fn is_fuse_device(descriptor: BorrowedFd<'_>) -> bool {
    link(descriptor.as_raw_fd()).is_ok_and(|link| link.as_os_str() == FUSE_DEVICE)
}

/// File that descriptor `number` of this process refers to.
fn link(number: RawFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_an_open_fuse_device_is_refused() {
        assert!(take(-1).unwrap_err().contains("is not open"));
        assert!(take(987_654).unwrap_err().contains("is not open"));
        let file = fs::File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        assert!(take(number).unwrap_err().contains("`/dev/null`, not /dev/fuse"));
    }
}

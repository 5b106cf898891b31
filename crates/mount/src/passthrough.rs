//! Opens that the kernel then answers by itself, from a local file that holds all of the object.
//!
//! The kernel wants all opens of an inode to be of one kind while any of them lasts, and all that it answers by itself to be
//! of one file. So the first open decides, until the last is closed. That of this process is counted from before the
//! kernel's open to after its close: what is free here is free there.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::{FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use super::kernel::Connection;
use super::tree::Inode;

/// Most file systems stacked under this one, which is the kernel's own limit: a cache may be on an overlay.
const MOST_STACKED: u32 = 2;

/// Open inodes, and whether the kernel serves them.
pub(super) struct Passthrough {
    state: Mutex<OpenInodes>,
    connection: Arc<Connection>,
    opens: AtomicU64,
}

struct OpenInodes {
    inodes: HashMap<Inode, Opened>,
    offer: Offer,
}

/// OpenInodes of the offer of whole files to the kernel.
enum Offer {
    Standing,
    /// Not possible, for a reason that is logged with the first file that would be offered.
    Unspoken(String),
    Withdrawn,
}

struct Opened {
    opens: usize,
    through: Option<Through>,
}

/// A backing file that the kernel reads by itself. While this lives, the cache does not evict it.
struct Through {
    id: u32,
    connection: Arc<Connection>,
    _file: Arc<File>,
}

impl Drop for Through {
    fn drop(&mut self) {
        self.connection.close_backing(self.id);
    }
}

impl Passthrough {
    /// Passthrough for files of `connection`.
    pub(super) fn new(connection: Connection) -> Arc<Self> {
        let state = OpenInodes { inodes: HashMap::new(), offer: Offer::Standing };
        Arc::new(Self { state: Mutex::new(state), connection: Arc::new(connection), opens: AtomicU64::new(0) })
    }

    /// Negotiates passthrough with the kernel.
    pub(super) fn agree(&self, config: &mut KernelConfig) {
        let agreed = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        if !agreed || config.set_max_stack_depth(MOST_STACKED).is_err() {
            self.lock().offer = Offer::Unspoken("this kernel knows no FUSE passthrough (Linux 6.9)".to_owned());
        }
    }

    /// Replies to an open of `inode`: with the backing file `whole` if the kernel accepts it, else as one whose reads
    /// are served here.
    pub(super) fn open(&self, inode: Inode, whole: impl FnOnce() -> Option<Arc<File>>, reply: ReplyOpen) {
        let mut state = self.lock();
        if !state.inodes.contains_key(&inode) {
            let through = whole().and_then(|file| state.offer(file, &self.connection));
            state.inodes.insert(inode, Opened { opens: 0, through });
        }
        let Some(opened) = state.inodes.get_mut(&inode) else { return };
        opened.opens += 1;
        match &opened.through {
            Some(through) => {
                self.opens.fetch_add(1, Ordering::Relaxed);
                // Without KEEP_CACHE: the pages belong to the backing file.
                let id = unsafe { reply.wrap_backing(through.id) };
                reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &id);
                // Its drop would close the backing file by an ioctl, for which this process may lack the right.
                let _ = id.into_raw();
            }
            None => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
        }
    }

    /// Reverts one [`Passthrough::open`].
    pub(super) fn close(&self, inode: Inode) {
        let mut state = self.lock();
        let Some(opened) = state.inodes.get_mut(&inode) else { return };
        opened.opens -= 1;
        if opened.opens == 0 {
            state.inodes.remove(&inode);
        }
    }

    /// Number of opens that the kernel serves by itself.
    pub(super) fn opens(&self) -> u64 {
        self.opens.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, OpenInodes> {
        self.state.lock()
    }
}

impl OpenInodes {
    /// Offers `file` to the kernel. After one refusal no further file is offered, and the log has the reason.
    fn offer(&mut self, file: Arc<File>, connection: &Arc<Connection>) -> Option<Through> {
        let reason = match std::mem::replace(&mut self.offer, Offer::Withdrawn) {
            Offer::Standing => match connection.open_backing(file.as_fd()) {
                Ok(id) => {
                    self.offer = Offer::Standing;
                    return Some(Through { id, connection: Arc::clone(connection), _file: file });
                }
                Err(error) => refusal(&error),
            },
            Offer::Unspoken(reason) => reason,
            Offer::Withdrawn => return None,
        };
        tracing::warn!("files of the disk cache are read through this process, not by the kernel itself: {reason}");
        None
    }
}

fn refusal(error: &io::Error) -> String {
    let hint = match Errno::from_io_error(error) {
        Some(Errno::PERM) => "it takes CAP_SYS_ADMIN, and not in a user namespace",
        Some(Errno::LOOP) => "the cache directory is on too many file systems above each other",
        _ => "the kernel refuses the file",
    };
    format!("{hint} ({error})")
}

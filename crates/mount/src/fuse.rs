//! The kernel's side of a [`FileSystem`]: translation, and nothing else.
//!
//! Names and attributes never change, so the kernel may keep them, absent names included, and file contents,
//! for as long as it likes. A read whose bytes are there is answered on the thread that took the request; any
//! other becomes a task, so that no FUSE thread ever waits for the network.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, WriteFlags,
};
use tokio::runtime::Handle;

use super::blocks::{Bytes, Read};
use super::filesystem::FileSystem;
use super::passthrough::Passthrough;
use super::source::Fault;
use super::tree::{Attributes, Inode};

/// Validity of answers in the kernel's caches: unlimited in effect, and far from any overflow.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Most background requests of the kernel (readahead): at 1 MiB each, several blocks.
const MOST_BACKGROUND_REQUESTS: u16 = 64;

/// Preferred read size in bytes, which `cp` and `cat` use.
const READ_BYTES: u32 = 1 << 20;

/// Serves the kernel's requests.
pub(super) struct Adapter {
    files: FileSystem,
    runtime: Handle,
    /// `None` where no source has whole files.
    passthrough: Option<Arc<Passthrough>>,
    user: u32,
    group: u32,
    /// Time of the mount, shown for objects without a time.
    mounted: SystemTime,
}

impl Adapter {
    pub(super) fn new(files: FileSystem, runtime: Handle, passthrough: Option<Arc<Passthrough>>) -> Self {
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { files, runtime, passthrough, user, group, mounted: SystemTime::now() }
    }

    fn attributes(&self, attributes: &Attributes) -> FileAttr {
        let modified = attributes.modified.unwrap_or(self.mounted);
        let (kind, perm) =
            if attributes.is_directory { (FileType::Directory, 0o555) } else { (FileType::RegularFile, 0o444) };
        FileAttr {
            ino: INodeNo(attributes.inode.number()),
            size: attributes.size_bytes,
            blocks: attributes.size_bytes.div_ceil(512),
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind,
            perm,
            nlink: attributes.links,
            uid: self.user,
            gid: self.group,
            rdev: 0,
            blksize: READ_BYTES,
            flags: 0,
        }
    }

    /// Attributes of a negative entry: the kernel may cache that a name does not exist.
    fn nothing(&self) -> FileAttr {
        let inode = Inode::from_number(0);
        self.attributes(&Attributes { inode, is_directory: false, size_bytes: 0, modified: None, links: 0 })
    }
}

fn inode(number: INodeNo) -> Inode {
    Inode::from_number(number.0)
}

fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_i32(errno.raw_os_error())
}

fn kind(attributes: &Attributes) -> FileType {
    if attributes.is_directory { FileType::Directory } else { FileType::RegularFile }
}

fn send(reply: ReplyData, result: Result<Bytes, Fault>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(fault) => reply.error(errno(fault.kind().errno())),
    }
}

/// Implements methods of [`fuser::Filesystem`] that only reply with an errno.
macro_rules! refuse {
    ($($method:ident($($argument:ty),*) -> $reply:ty = $errno:ident;)*) => {
        $(fn $method(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(Errno::$errno);
        })*
    };
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Capabilities are optional: each improves speed where the kernel has it.
        for wanted in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_background(MOST_BACKGROUND_REQUESTS);
        if let Some(passthrough) = &self.passthrough {
            passthrough.agree(config);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.files.lookup(inode(parent), name.as_encoded_bytes()) {
            Ok(found) => reply.entry(&FOREVER, &self.attributes(&found), Generation(0)),
            Err(rustix::io::Errno::NOENT) => reply.entry(&FOREVER, &self.nothing(), Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.files.attributes(inode(ino)) {
            Ok(found) => reply.attr(&FOREVER, &self.attributes(&found)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let to_write = flags.acc_mode() != OpenAccMode::O_RDONLY;
        match (self.files.open(inode(ino), to_write), &self.passthrough) {
            (Ok(()), Some(passthrough)) => passthrough.open(inode(ino), || self.files.whole(inode(ino)), reply),
            (Ok(()), None) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
            (Err(error), _) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.files.read(inode(ino), offset, u64::from(size)) {
            Read::Ready(result) => send(reply, result),
            Read::Waiting(future) => {
                self.runtime.spawn(async move { send(reply, future.await) });
            }
        }
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(passthrough) = &self.passthrough {
            passthrough.close(inode(ino));
        }
        self.files.close(inode(ino));
        reply.ok();
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.files.entries(inode(ino), skip) {
            Ok(entries) => {
                for (next, (entry, name)) in (offset + 1..).zip(entries) {
                    if reply.add(INodeNo(entry.inode.number()), next, kind(&entry), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.files.entries(inode(ino), skip) {
            Ok(entries) => {
                for (next, (entry, name)) in (offset + 1..).zip(entries) {
                    let attributes = self.attributes(&entry);
                    if reply.add(attributes.ino, next, name, &FOREVER, &attributes, Generation(0)) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let tree = self.files.tree();
        let block = 4096;
        reply.statfs(tree.file_bytes().div_ceil(block), 0, 0, tree.nodes() as u64, 0, block as u32, 255, block as u32);
    }

    fn readlink(&self, _request: &Request, _ino: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }

    refuse! {
        // Not supported. ENOSYS is cached: the kernel sends the first request only.
        flush(INodeNo, FileHandle, LockOwner) -> ReplyEmpty = ENOSYS;
        fsync(INodeNo, FileHandle, bool) -> ReplyEmpty = ENOSYS;
        getxattr(INodeNo, &OsStr, u32) -> ReplyXattr = ENOSYS;
        listxattr(INodeNo, u32) -> ReplyXattr = ENOSYS;
        lseek(INodeNo, FileHandle, i64, i32) -> fuser::ReplyLseek = ENOSYS;
        ioctl(INodeNo, FileHandle, fuser::IoctlFlags, u32, &[u8], u32) -> fuser::ReplyIoctl = ENOTTY;
        // The kernel refuses these by itself while the mount is read-only; a privileged process may remount it.
        setattr(INodeNo, Option<u32>, Option<u32>, Option<u32>, Option<u64>, Option<fuser::TimeOrNow>, Option<fuser::TimeOrNow>, Option<SystemTime>, Option<FileHandle>, Option<SystemTime>, Option<SystemTime>, Option<SystemTime>, Option<fuser::BsdFileFlags>) -> ReplyAttr = EROFS;
        mknod(INodeNo, &OsStr, u32, u32, u32) -> ReplyEntry = EROFS;
        mkdir(INodeNo, &OsStr, u32, u32) -> ReplyEntry = EROFS;
        unlink(INodeNo, &OsStr) -> ReplyEmpty = EROFS;
        rmdir(INodeNo, &OsStr) -> ReplyEmpty = EROFS;
        symlink(INodeNo, &OsStr, &Path) -> ReplyEntry = EROFS;
        rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) -> ReplyEmpty = EROFS;
        link(INodeNo, INodeNo, &OsStr) -> ReplyEntry = EROFS;
        create(INodeNo, &OsStr, u32, u32, i32) -> ReplyCreate = EROFS;
        write(INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>) -> ReplyWrite = EROFS;
        setxattr(INodeNo, &OsStr, &[u8], i32, u32) -> ReplyEmpty = EROFS;
        removexattr(INodeNo, &OsStr) -> ReplyEmpty = EROFS;
        fallocate(INodeNo, FileHandle, u64, u64, i32) -> ReplyEmpty = EROFS;
    }
}

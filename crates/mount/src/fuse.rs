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

/// How long the kernel may keep an answer: as good as for ever, and far from any overflow.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads that the kernel may have on their way without a process waiting for each (readahead): at the 1 MiB of
/// one request, several blocks.
const MOST_BACKGROUND_REQUESTS: u16 = 64;

/// The preferred size of a read, for programs that ask (`cp` and `cat` do).
const READ_BYTES: u32 = 1 << 20;

/// Answers the kernel.
pub(super) struct Adapter {
    files: FileSystem,
    runtime: Handle,
    /// `None` where no source has whole files.
    passthrough: Option<Arc<Passthrough>>,
    user: u32,
    group: u32,
    /// Shown where an object has no time.
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

    /// An entry that says: there is nothing of this name, and there never will be.
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

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Each is an improvement where the kernel has it, and nothing is lost where it has not.
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

    // Not supported, said once: the kernel remembers it and answers for us from then on.

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _request: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: fuser::ReplyLseek,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: fuser::IoctlFlags,
        _command: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    // The kernel refuses these by itself as long as the mount is read-only; somebody may remount it.

    fn setattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<fuser::TimeOrNow>,
        _mtime: Option<fuser::TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _request: &Request, _ino: INodeNo, _new_parent: INodeNo, _new_name: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }
}

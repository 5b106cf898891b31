//! The file system without a kernel: what each call returns, or its errno.
//!
//! Read-only, so every answer about names and attributes is final. [`super::fuse`] translates these calls to
//! and from the kernel's, and tests drive them directly. `docs/SEMANTICS.md` lists every errno.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::blocks::{BlockMap, Read};
use super::direct::DirectFile;
use super::tree::{Attributes, Inode, Tree};

/// Longest name of a lookup, in bytes.
const LONGEST_NAME_BYTES: usize = 255;

/// A tree and the bytes of its files. Cheap to clone.
#[derive(Clone)]
pub struct FileSystem {
    tree: Arc<Tree>,
    blocks: BlockMap,
}

impl FileSystem {
    /// A file system of the files of `tree`, read through `blocks`.
    pub fn new(tree: Arc<Tree>, blocks: BlockMap) -> Self {
        Self { tree, blocks }
    }

    /// Names and sizes of the files.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Block map with the bytes of the files.
    pub fn blocks(&self) -> &BlockMap {
        &self.blocks
    }

    /// The node called `name` in `directory`.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENAMETOOLONG`.
    pub fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Attributes, Errno> {
        if !self.attributes(directory)?.is_directory {
            return Err(Errno::NOTDIR);
        }
        if name.len() > LONGEST_NAME_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        self.attributes(self.tree.lookup(directory, name).ok_or(Errno::NOENT)?)
    }

    /// Attributes of `inode`, as `stat` shows them.
    pub fn attributes(&self, inode: Inode) -> Result<Attributes, Errno> {
        self.tree.attributes(inode).ok_or(Errno::NOENT)
    }

    /// The entries of a directory from the `skip`th on: `.`, `..`, and what it holds, sorted by name.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`.
    pub fn entries(&self, directory: Inode, skip: usize) -> Result<impl Iterator<Item = (Attributes, &str)>, Errno> {
        let own = self.attributes(directory)?;
        let children = self.tree.children(directory, skip.saturating_sub(2)).ok_or(Errno::NOTDIR)?;
        let above = self.attributes(self.tree.parent(directory).ok_or(Errno::NOENT)?)?;
        let dots = [(own, "."), (above, "..")].into_iter().skip(skip);
        let children = children.filter_map(|(inode, name)| Some((self.tree.attributes(inode)?, name)));
        Ok(dots.chain(children))
    }

    /// Opens a file; each success is to be closed once.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, and `EROFS` to write.
    pub fn open(&self, inode: Inode, to_write: bool) -> Result<(), Errno> {
        if self.attributes(inode)?.is_directory {
            return Err(Errno::ISDIR);
        }
        if to_write {
            return Err(Errno::ROFS);
        }
        let object = self.tree.object(inode).ok_or(Errno::NOENT)?;
        self.blocks.open(inode, object);
        Ok(())
    }

    /// Reverts one [`FileSystem::open`].
    pub fn close(&self, inode: Inode) {
        self.blocks.close(inode);
    }

    /// The local file with all bytes of `inode`, if there is one.
    pub fn whole(&self, inode: Inode) -> Option<Arc<File>> {
        self.blocks.whole(&self.tree.object(inode)?)
    }

    /// Begins to read at most `len` bytes from `offset` on; fewer only at the end of the file.
    pub fn read(&self, inode: Inode, offset: u64, len: u64) -> Read {
        let end = offset.saturating_add(len);
        self.blocks.read(inode, offset..end, end)
    }

    /// The file at `path`, relative to the root, for reading without the kernel.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`.
    pub fn open_direct(&self, path: &Path) -> Result<DirectFile, Errno> {
        let inode = self.tree.find(path.as_os_str().as_encoded_bytes()).ok_or(Errno::NOENT)?;
        self.open(inode, false)?;
        let size_bytes = self.attributes(inode)?.size_bytes;
        Ok(DirectFile::new(self.blocks.clone(), inode, size_bytes, self.whole(inode)))
    }
}

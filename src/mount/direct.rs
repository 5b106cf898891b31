//! Files of a mount read from its block map, without a detour through the kernel.
//!
//! For the model loader: its reads are large, it says how far each goes, and it needs no second copy of the
//! bytes in the page cache.

use std::io;

use super::blocks::{BlockMap, Read};
use super::source::Fault;
use super::tree::Inode;

/// An open file. Any number of threads may read it at once; they must be threads that may block.
pub struct DirectFile {
    blocks: BlockMap,
    inode: Inode,
    size_bytes: u64,
}

impl DirectFile {
    /// Takes over one open of `inode`.
    pub(super) fn new(blocks: BlockMap, inode: Inode, size_bytes: u64) -> Self {
        Self { blocks, inode, size_bytes }
    }

    /// Length of the file.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buffer` with the bytes from `offset` on. All of them are on their way as soon as this begins, as
    /// far as memory and the number of connections allow.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends before, else the kind of the fault's errno with the [`Fault`] inside.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.size_bytes);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let block_bytes = self.blocks.limits().block_bytes as u64;
        let (mut position, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            // Block by block, so that none is held while another one is waited for.
            let piece_end = end.min((position / block_bytes + 1) * block_bytes);
            let bytes = match self.blocks.read(self.inode, position..piece_end, end) {
                Read::Ready(result) => result,
                Read::Waiting(future) => {
                    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
                    self.blocks.runtime().spawn(async move {
                        let _ = sender.send(future.await);
                    });
                    receiver.recv().unwrap_or_else(|_| Err(Fault::closed()))
                }
            }?;
            let (filled, unfilled) = rest.split_at_mut(bytes.len());
            filled.copy_from_slice(&bytes);
            rest = unfilled;
            position = piece_end;
        }
        Ok(())
    }
}

impl Drop for DirectFile {
    fn drop(&mut self) {
        self.blocks.close(self.inode);
    }
}

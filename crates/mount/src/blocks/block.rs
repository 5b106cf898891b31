//! One block of a file: its bytes, its state and the readers that wait for it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use super::Fault;
use super::buffer::{Buffer, Writer};

/// A block of one file. Its state only advances: without memory, filling, then complete or failed.
pub(super) struct Block {
    pub(super) index: u64,
    pub(super) len: usize,
    buffer: OnceLock<Arc<Buffer>>,
    fault: OnceLock<Fault>,
    /// Smallest filled length that a waiter needs; `usize::MAX` without waiters.
    wake_at: AtomicUsize,
    changed: Notify,
    /// Bytes handed to readers; bytes handed out twice count twice.
    delivered: AtomicUsize,
    /// Time of the last read on the table's logical clock; 0 before the first read.
    pub(super) last_read: AtomicU64,
    /// Set once a reader had to wait for the block.
    waited_for: AtomicBool,
    /// Set on the first block that readahead asked for after a pause.
    pub(super) after_pause: AtomicBool,
}

impl Block {
    pub(super) fn new(index: u64, len: usize) -> Arc<Self> {
        Arc::new(Self {
            index,
            len,
            buffer: OnceLock::new(),
            fault: OnceLock::new(),
            wake_at: AtomicUsize::new(usize::MAX),
            changed: Notify::new(),
            delivered: AtomicUsize::new(0),
            last_read: AtomicU64::new(0),
            waited_for: AtomicBool::new(false),
            after_pause: AtomicBool::new(false),
        })
    }

    /// Gives the block its memory, once.
    pub(super) fn begin(&self, buffer: Arc<Buffer>) {
        let _ = self.buffer.set(buffer);
    }

    /// Bytes that have arrived, counted from the block's start.
    pub(super) fn filled(&self) -> usize {
        self.buffer.get().map_or(0, |buffer| buffer.filled())
    }

    /// Returns whether all bytes have arrived.
    pub(super) fn is_complete(&self) -> bool {
        self.filled() == self.len
    }

    /// Returns whether a reader had to wait for the block.
    pub(super) fn was_waited_for(&self) -> bool {
        self.waited_for.load(Ordering::Relaxed)
    }

    /// The bytes that have arrived.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get().map_or(&[], |buffer| buffer.bytes())
    }

    /// Records that readers got `bytes` bytes.
    pub(super) fn deliver(&self, bytes: usize) {
        self.delivered.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns whether readers got at least as many bytes as the block has: the kernel's page cache or a tensor holds
    /// them now.
    pub(super) fn is_consumed(&self) -> bool {
        self.delivered.load(Ordering::Relaxed) >= self.len
    }

    /// Appends through `writer`, which must be the block's own, and wakes waiters whose bytes are now complete. Returns
    /// false where `bytes` do not fit.
    pub(super) fn append(&self, writer: &mut Writer, bytes: &[u8]) -> bool {
        let fits = writer.append(bytes);
        // Lost-wakeup protocol: publish the length, then look for waiters. A waiter does the reverse, it publishes the
        // length it needs and then looks for bytes. With sequentially consistent operations at least one of the two
        // sees the other.
        if self.filled() >= self.wake_at.load(Ordering::SeqCst) {
            self.wake_at.store(usize::MAX, Ordering::SeqCst);
            self.changed.notify_waiters();
        }
        fits
    }

    /// Ends the block with `fault`, which waiters for missing bytes receive.
    pub(super) fn fail(&self, fault: Fault) {
        let _ = self.fault.set(fault);
        self.changed.notify_waiters();
    }

    /// Waits until the first `len` bytes are there.
    pub(super) async fn wait(&self, len: usize) -> Result<(), Fault> {
        loop {
            // Registered before the check: a wake-up between the check and the await would be lost otherwise.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            // The smallest length of all waiters. A waiter that is woken too early loops and registers again.
            self.wake_at.fetch_min(len, Ordering::SeqCst);
            if self.filled() >= len {
                return Ok(());
            }
            if let Some(fault) = self.fault.get() {
                return Err(fault.clone());
            }
            self.waited_for.store(true, Ordering::Relaxed);
            changed.await;
        }
    }
}

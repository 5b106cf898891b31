//! One block: asked for, filling, complete or failed, and those who wait for it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use super::Fault;
use super::buffer::{Buffer, Writer};

/// A piece of one file. Its states only ever advance: no memory yet, filling, and then complete or failed.
pub(super) struct Block {
    pub(super) index: u64,
    pub(super) len: usize,
    buffer: OnceLock<Arc<Buffer>>,
    fault: OnceLock<Fault>,
    /// The smallest length that somebody waits for.
    wake_at: AtomicUsize,
    changed: Notify,
    /// Bytes handed to readers, those handed out twice counted twice.
    delivered: AtomicUsize,
    /// When it was last read, on the table's clock; 0 before the first time.
    pub(super) last_read: AtomicU64,
    /// A reader had to wait for it.
    waited_for: AtomicBool,
    /// It was the first that was asked for after a pause in reading ahead.
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

    /// Gives it memory, once.
    pub(super) fn begin(&self, buffer: Arc<Buffer>) {
        let _ = self.buffer.set(buffer);
    }

    /// How many bytes from its start are there.
    pub(super) fn filled(&self) -> usize {
        self.buffer.get().map_or(0, |buffer| buffer.filled())
    }

    /// Whether all of its bytes are there.
    pub(super) fn is_complete(&self) -> bool {
        self.filled() == self.len
    }

    /// Whether a reader had to wait for it.
    pub(super) fn was_waited_for(&self) -> bool {
        self.waited_for.load(Ordering::Relaxed)
    }

    /// The bytes that are there.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get().map_or(&[], |buffer| buffer.bytes())
    }

    /// Notes that readers got `bytes`.
    pub(super) fn deliver(&self, bytes: usize) {
        self.delivered.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether readers got as many bytes as it has: the kernel or a tensor holds them now.
    pub(super) fn is_consumed(&self) -> bool {
        self.delivered.load(Ordering::Relaxed) >= self.len
    }

    /// Appends through `writer`, which must be that of its buffer, and wakes those who have enough now.
    pub(super) fn append(&self, writer: &mut Writer, bytes: &[u8]) -> bool {
        let fits = writer.append(bytes);
        // Order: publish, then look for waiters. A waiter says what it waits for, then looks for bytes.
        if self.filled() >= self.wake_at.load(Ordering::SeqCst) {
            self.wake_at.store(usize::MAX, Ordering::SeqCst);
            self.changed.notify_waiters();
        }
        fits
    }

    /// Ends it: whoever waits for bytes that did not come gets `fault`.
    pub(super) fn fail(&self, fault: Fault) {
        let _ = self.fault.set(fault);
        self.changed.notify_waiters();
    }

    /// Waits until the first `len` bytes are there.
    pub(super) async fn wait(&self, len: usize) -> Result<(), Fault> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
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

//! Memory that one task fills from the front while many readers already use what is there.
//!
//! A block is useful from its first byte on: a safetensors header must not wait for eight mebibytes. So the
//! length that is filled is published as it grows, and what lies below it never changes again. All buffers
//! come from one [`Memory`], which never hands out more than its limit and reuses full-size buffers, whose
//! pages the kernel has mapped already. Their pages are huge where the kernel has such: mapping 4 KiB at a time took a
//! quarter of all processor time between a socket and a reader. Nothing is zeroed, as nothing unfilled is ever seen.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

/// A bounded supply of buffers.
pub(crate) struct Memory {
    limit_bytes: usize,
    /// Size of a full block in bytes; buffers of exactly this size are recycled.
    full_bytes: usize,
    state: Mutex<Supply>,
}

#[derive(Default)]
struct Supply {
    /// Bytes allocated: in use, or free for the next use.
    held_bytes: usize,
    /// Largest value of `held_bytes` so far, in bytes.
    peak_bytes: usize,
    free: Vec<Region>,
}

/// Memory that is allocated and not necessarily initialised.
struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory as a `Box<[MaybeUninit<u8>]>` would.
unsafe impl Send for Region {}

impl Region {
    /// Length and alignment of a huge page.
    const HUGE_BYTES: usize = 2 << 20;

    fn layout(len: usize) -> Layout {
        // Only an allocation that is aligned to a huge page can be backed by huge pages from its first byte on.
        let align = if len >= Self::HUGE_BYTES { Self::HUGE_BYTES } else { 64 };
        // Blocks are at least one byte and far below the largest that there can be.
        Layout::from_size_align(len.max(1), align).expect("a block's length")
    }

    fn new(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        if len >= Self::HUGE_BYTES {
            let whole = len - len % Self::HUGE_BYTES;
            // SAFETY: the range is ours and aligned to pages; the advice changes no byte of it, and may be refused.
            unsafe { libc::madvise(start.as_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
        }
        Self { start, len }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) };
    }
}

impl Memory {
    /// A supply of at most `limit_bytes`, in buffers of mostly `full_bytes`.
    pub(crate) fn new(limit_bytes: usize, full_bytes: usize) -> Arc<Self> {
        Arc::new(Self { limit_bytes, full_bytes, state: Mutex::default() })
    }

    /// A buffer of `len` bytes, and the only handle that can fill it. `None` while there is no room.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Option<(Writer, Arc<Buffer>)> {
        let recycled = {
            let mut state = self.lock();
            // Recycled regions are already mapped; a fresh one costs a page fault for every page.
            let recycled = if len == self.full_bytes { state.free.pop() } else { None };
            if recycled.is_none() {
                // Free full-size regions count as held. They are released, one after the other, to make room for a
                // buffer of another size. `?` gives up where none is free.
                while state.held_bytes + len > self.limit_bytes {
                    state.held_bytes -= state.free.pop()?.len;
                }
                state.held_bytes += len;
                state.peak_bytes = state.peak_bytes.max(state.held_bytes);
            }
            recycled
        };
        // Allocated outside of the lock: the kernel may take a while, and other blocks need the lock meanwhile.
        let region = Some(recycled.unwrap_or_else(|| Region::new(len)));
        let buffer = Arc::new(Buffer { region, len, filled: AtomicUsize::new(0), memory: Arc::clone(self) });
        Some((Writer { buffer: Arc::clone(&buffer) }, buffer))
    }

    /// Returns whether a full-size buffer is free for reuse.
    pub(crate) fn has_free(&self) -> bool {
        !self.lock().free.is_empty()
    }

    /// Bytes allocated now, and at the peak.
    pub(crate) fn held_and_peak_bytes(&self) -> (usize, usize) {
        let state = self.lock();
        (state.held_bytes, state.peak_bytes)
    }

    fn give_back(&self, region: Region) {
        let mut state = self.lock();
        if region.len == self.full_bytes {
            state.free.push(region);
        } else {
            state.held_bytes -= region.len;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Supply> {
        self.state.lock()
    }
}

/// Memory whose first [`Buffer::filled`] bytes are initialised and final.
pub(crate) struct Buffer {
    /// `Some` until the buffer is dropped.
    region: Option<Region>,
    len: usize,
    filled: AtomicUsize,
    memory: Arc<Memory>,
}

// SAFETY: bytes below `filled` are only ever read, by anyone; bytes from `filled` on are touched by the one
// `Writer` alone, which publishes them with a release store that readers acquire.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Number of bytes that have been written, counted from the front.
    pub(crate) fn filled(&self) -> usize {
        self.filled.load(Ordering::SeqCst)
    }

    /// The bytes that have been written.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `filled` ≤ `len` bytes from `start` on were written before `filled` was published, live as long as
        // `self`, and no writer touches bytes below `filled` again.
        unsafe { std::slice::from_raw_parts(self.start(), self.filled()) }
    }

    fn start(&self) -> *mut u8 {
        self.region.as_ref().map_or(NonNull::dangling(), |region| region.start).as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            self.memory.give_back(region);
        }
    }
}

/// The one handle that fills a [`Buffer`].
pub(crate) struct Writer {
    buffer: Arc<Buffer>,
}

impl Writer {
    /// Appends `bytes` and publishes them. Returns false, and appends nothing, where they do not fit.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> bool {
        let filled = self.buffer.filled();
        if bytes.len() > self.buffer.len - filled {
            return false;
        }
        // SAFETY: the target is within the buffer (checked), above `filled`, where no reader looks and no other
        // writer exists (`&mut self` of the only `Writer`), and cannot overlap a `&[u8]` that exists.
        unsafe {
            let target = self.buffer.start().add(filled);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
        self.buffer.filled.store(filled + bytes.len(), Ordering::SeqCst);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_a_growing_prefix_while_it_is_filled() {
        let memory = Memory::new(1 << 20, 1 << 20);
        let (mut writer, buffer) = memory.take(1 << 20).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while buffer.filled() < 1 << 20 {
                        let bytes = buffer.bytes();
                        assert!(bytes.iter().enumerate().all(|(position, byte)| *byte == (position / 4096) as u8));
                    }
                });
            }
            scope.spawn(move || {
                for chunk in 0..256 {
                    assert!(writer.append(&[chunk as u8; 4096]));
                }
                assert!(!writer.append(&[0]));
            });
        });
    }

    #[test]
    fn there_is_never_more_than_the_limit() {
        let memory = Memory::new(100, 40);
        let full = [memory.take(40).unwrap(), memory.take(40).unwrap()];
        assert!(memory.take(40).is_none() && memory.take(21).is_none());
        let small = memory.take(20).unwrap();
        assert!(memory.take(1).is_none());
        drop(full);
        assert_eq!(memory.held_and_peak_bytes(), (100, 100));
        // A free full-size buffer makes room for one of another size.
        let other = memory.take(30).unwrap();
        assert_eq!(memory.held_and_peak_bytes().0, 90);
        drop((small, other));
        assert_eq!(memory.held_and_peak_bytes(), (40, 100));
        let (writer, buffer) = memory.take(40).unwrap();
        assert_eq!((buffer.filled(), memory.held_and_peak_bytes().0), (0, 40));
        drop((writer, buffer));
    }
}

//! Memory for kernels: aligned to vectors, grown when needed, kept between calls.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Of a cache line, and of the widest vector.
const LINE_BYTES: usize = 64;

/// A fixed number of zeroed bytes, aligned to a cache line.
pub(super) struct AlignedBytes {
    start: NonNull<u8>,
    layout: Layout,
}

impl AlignedBytes {
    /// # Panics
    /// If `bytes` does not fit an address space; aborts where memory is refused.
    pub(super) fn zeroed(bytes: usize) -> AlignedBytes {
        let layout = Layout::from_size_align(bytes.max(1), LINE_BYTES).expect("a size that fits the address space");
        // SAFETY: the layout has a size above 0.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        AlignedBytes { start, layout }
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

// SAFETY: plain memory, owned.
unsafe impl Send for AlignedBytes {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBytes {}

/// The workspace of one thread of a pool.
#[derive(Default)]
pub(super) struct Scratch {
    memory: Option<AlignedBytes>,
    floats: usize,
}

impl Scratch {
    /// `count` floats, aligned, holding whatever was left in them.
    pub(super) fn floats(&mut self, count: usize) -> &mut [f32] {
        if self.memory.is_none() || self.floats < count {
            self.floats = count.next_power_of_two().max(1024);
            self.memory = Some(AlignedBytes::zeroed(self.floats * size_of::<f32>()));
        }
        let Some(memory) = &mut self.memory else { return &mut [] };
        // SAFETY: the memory has at least `count` floats, zeroed at first, and is borrowed for as long as `self`.
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), count) }
    }
}

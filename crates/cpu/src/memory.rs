//! Memory for kernels: aligned to vectors, in huge pages where it is large; and a slice that threads share by parts.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::Zeroable;
use bytemuck::allocation::try_zeroed_vec;
use memmap2::{MmapOptions, MmapRaw};
use parking_lot::Mutex;

/// Bytes of a cache line, and of the widest vector: what memory is aligned to and asked for in.
pub const LINE_BYTES: usize = 64;

/// Bytes of a huge page on x86-64, and on aarch64 with pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A fixed number of zeroed bytes, aligned to a cache line; from some MiB on in huge pages where the system has them,
/// first touched by the thread that writes there first.
pub(super) struct AlignedBytes {
    start: NonNull<u8>,
    source: Source,
}

/// Allocation that the bytes came from, and go back to.
enum Source {
    Allocator(Layout),
    /// Held to be unmapped with the bytes.
    Mapping(#[expect(dead_code, reason = "its drop unmaps")] MmapRaw),
}

impl AlignedBytes {
    /// # Panics
    /// If `bytes` does not fit an address space; aborts where memory is refused.
    pub(super) fn zeroed(bytes: usize) -> AlignedBytes {
        if bytes >= 2 * HUGE_PAGE_BYTES
            && let Some(mapped) = AlignedBytes::mapped(bytes)
        {
            return mapped;
        }
        let layout = Layout::from_size_align(bytes.max(1), LINE_BYTES).expect("a size that fits the address space");
        // SAFETY: the layout has a size above 0.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        AlignedBytes { start, source: Source::Allocator(layout) }
    }

    /// The allocator would zero them, on one thread, and knows nothing of huge pages.
    fn mapped(bytes: usize) -> Option<AlignedBytes> {
        // Room to begin at a huge page: the system maps at any small one.
        let padded = bytes.checked_add(HUGE_PAGE_BYTES)?;
        let mapping = MmapRaw::from(MmapOptions::new().len(padded).map_anon().ok()?);
        let start = mapping.as_mut_ptr();
        let offset = start.align_offset(HUGE_PAGE_BYTES).min(HUGE_PAGE_BYTES);
        #[cfg(target_os = "linux")]
        // Where the advice is refused, pages stay small.
        let _ = mapping.advise_range(memmap2::Advice::HugePage, offset, bytes);
        NonNull::new(start.wrapping_add(offset)).map(|start| AlignedBytes { start, source: Source::Mapping(mapping) })
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if let Source::Allocator(layout) = self.source {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

// SAFETY: plain memory, owned.
unsafe impl Send for AlignedBytes {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBytes {}

/// Below this, memory is the allocator's own.
const LARGE_BYTES: usize = 1 << 20;
/// Least size of large memory. This much glibc has the system map, zeroed and untouched, whatever it has learnt
/// from earlier requests (`DEFAULT_MMAP_THRESHOLD_MAX` in `malloc/malloc.c`); less it may take from its heap, and zeroes it page
/// by page. What is not used of it takes addresses and no memory.
const MAPPED_BYTES: usize = 32 << 20;

/// `len` zeros; many of them take no memory before they are touched, and are in huge pages where the system has them.
/// `None` where it refuses the memory.
pub fn untouched_zeros<T: Zeroable + Copy>(len: usize) -> Option<Vec<T>> {
    let is_large = len.saturating_mul(size_of::<T>()) >= LARGE_BYTES;
    let capacity = if is_large { len.max(MAPPED_BYTES / size_of::<T>()) } else { len };
    let mut zeros = try_zeroed_vec(capacity).ok()?;
    zeros.truncate(len);
    prefer_huge_pages(&zeros);
    Some(zeros)
}

/// Asks the system for huge pages behind memory that has not been touched yet. What walks through small pages waits for
/// address translation, and each first touch of one is an interruption.
pub fn prefer_huge_pages<T>(memory: &[T]) {
    #[cfg(target_os = "linux")]
    {
        let range = memory.as_ptr_range();
        let (start, end) = (range.start.addr().next_multiple_of(HUGE_PAGE_BYTES), range.end.addr());
        if let Some(bytes) = end.checked_sub(start).map(|bytes| bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES)
            && bytes > 0
        {
            // SAFETY: whole pages inside borrowed memory; advice changes no contents, and where it is refused pages stay
            // small.
            unsafe {
                libc::madvise(range.start.with_addr(start).cast_mut().cast(), bytes, libc::MADV_HUGEPAGE);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Bytes that an [`Arena`] takes from the system at a time. Unused ones are never touched.
const CHUNK_BYTES: usize = 64 << 20;

/// Memory for many matrices side by side in huge pages: alone, most would be too small for one, and with small pages
/// a product of few rows waits for address translation more than for data.
#[derive(Default)]
pub(super) struct Arena {
    /// The chunk in use, and how much of it is.
    current: Mutex<Option<(Arc<AlignedBytes>, usize)>>,
}

/// Part of an [`Arena`]: zeroed, aligned to a cache line. Its chunk lives until its last region is gone.
pub(super) struct Region {
    chunk: Arc<AlignedBytes>,
    offset: usize,
}

impl Arena {
    pub(super) fn take(&self, bytes: usize) -> Region {
        if bytes > CHUNK_BYTES / 2 {
            return Region { chunk: Arc::new(AlignedBytes::zeroed(bytes)), offset: 0 };
        }
        let mut current = self.current.lock();
        let (chunk, used) = match current.take() {
            Some((chunk, used)) if used + bytes <= CHUNK_BYTES => (chunk, used),
            _ => (Arc::new(AlignedBytes::zeroed(CHUNK_BYTES)), 0),
        };
        *current = Some((Arc::clone(&chunk), (used + bytes).next_multiple_of(LINE_BYTES)));
        Region { chunk, offset: used }
    }
}

impl Region {
    pub(super) fn as_ptr(&self) -> *const u8 {
        self.as_mut_ptr()
    }

    /// No other region has these bytes; a thread that writes must not read them at the same time.
    pub(super) fn as_mut_ptr(&self) -> *mut u8 {
        self.chunk.start.as_ptr().wrapping_add(self.offset)
    }
}

/// Floats that grow when more are needed, and are kept between calls.
#[derive(Default)]
pub(super) struct Scratch {
    memory: Option<AlignedBytes>,
    floats: usize,
}

impl Scratch {
    /// `count` floats, aligned, holding whatever was left in them.
    pub(super) fn floats(&mut self, count: usize) -> &mut [f32] {
        if self.floats < count {
            self.floats = count.next_power_of_two().max(1024);
            self.memory = Some(AlignedBytes::zeroed(self.floats * size_of::<f32>()));
        }
        let Some(memory) = &mut self.memory else { return &mut [] };
        // SAFETY: the memory has at least `count` floats, zeroed at first, and is borrowed for as long as `self`.
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), count) }
    }
}

/// A slice that several threads write, each to parts of its own.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<'a, T> Parts<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Parts<'a, T> {
        Parts { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Pointer to the beginning of `range`, for kernels that write parts of it only.
    ///
    /// # Panics
    /// If `range` is out of bounds.
    pub(super) fn pointer(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} entries", self.len);
        self.start.wrapping_add(range.start)
    }

    /// The entries in `range`.
    ///
    /// # Safety
    /// While the result lives, no other reference to any of these entries exists.
    ///
    /// # Panics
    /// If `range` is out of bounds.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        let len = range.len();
        // SAFETY: in bounds, and exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(range), len) }
    }
}

// SAFETY: parts that a thread has are its own, by the promise that `part` demands.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Parts<'_, T> {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn many_zeros_take_no_memory_before_they_are_touched() {
        // No page is longer, none shorter than 4 KiB.
        const PAGES: usize = 64 << 10;
        // What is given back this large has glibc keep memory of that size in its heap from then on.
        drop(std::hint::black_box(vec![1u8; 31 << 20]));
        let numbers = untouched_zeros::<u16>(4 << 20).unwrap();
        let (start, bytes) = (numbers.as_ptr().addr().next_multiple_of(PAGES), size_of_val(&numbers[..]) - PAGES);
        let mut pages = vec![0u8; bytes / 4096];
        // SAFETY: whole pages of memory that is borrowed, and room for a byte for each.
        let asked = unsafe { libc::mincore(start as *mut libc::c_void, bytes, pages.as_mut_ptr()) };
        assert_eq!((asked, pages.iter().filter(|&&page| page & 1 != 0).count()), (0, 0));
        assert!(numbers.iter().all(|&number| number == 0));
    }
}

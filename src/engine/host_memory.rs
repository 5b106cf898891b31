//! Zeros on the host as kernels like them: they begin at a cache line, so that no vector lies in two, are in huge pages
//! where they are many, and take no memory before they are touched.

use std::alloc::{Layout, alloc_zeroed};

use candle_core::{Device, Error, Result, Tensor, WithDType};
use half::{bf16, f16};

use crate::kernels::{LINE_BYTES, prefer_huge_pages};
use crate::model::Dtype;

/// Below this, memory is the allocator's own.
const LARGE_BYTES: usize = 1 << 20;
/// What large memory is asked for in at least. This much glibc has the system map, zeroed and untouched, whatever it has learnt
/// from earlier requests (`DEFAULT_MMAP_THRESHOLD_MAX` in `malloc/malloc.c`); less it may take from its heap, and zeroes it page
/// by page. What is not used of it takes addresses and no memory.
const MAPPED_BYTES: usize = 32 << 20;

/// `[count]`.
///
/// # Errors
/// Where the system refuses the memory.
pub fn zeros(count: usize, dtype: Dtype) -> Result<Tensor> {
    match dtype {
        Dtype::F32 => tensor::<f32>(count),
        Dtype::Bf16 => tensor::<bf16>(count),
        Dtype::F16 => tensor::<f16>(count),
    }
}

fn tensor<T: WithDType>(count: usize) -> Result<Tensor> {
    let len = count + LINE_BYTES / size_of::<T>();
    let numbers = vector::<T>(len).ok_or_else(|| Error::Msg(format!("the system refuses memory for {len} numbers")))?;
    prefer_huge_pages(&numbers);
    let first = numbers.as_ptr().align_offset(LINE_BYTES);
    Tensor::from_vec(numbers, len, &Device::Cpu)?.narrow(0, first, count)
}

/// `len` zeros, more than none.
fn vector<T: WithDType>(len: usize) -> Option<Vec<T>> {
    let is_large = len >= LARGE_BYTES / size_of::<T>();
    let capacity = if is_large { len.max(MAPPED_BYTES / size_of::<T>()) } else { len };
    let layout = Layout::array::<T>(capacity).ok()?;
    // SAFETY: the layout has a size above 0.
    let start = unsafe { alloc_zeroed(layout) };
    // SAFETY: it came from the global allocator with the layout of a vector of this capacity, which nobody else has; in all
    // formats of `Dtype`, bits of zero are the number zero.
    (!start.is_null()).then(|| unsafe { Vec::from_raw_parts(start.cast(), len, capacity) })
}

#[cfg(test)]
mod tests {
    use super::super::ops::access::Operand;
    use super::*;
    use crate::kernels::CacheSlice;

    #[test]
    fn zeros_begin_at_a_line_whatever_their_number() {
        for count in [1, 7, 1000, 3 << 20] {
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                let tensor = zeros(count, dtype).unwrap();
                let operand = Operand::of(&tensor);
                let (start, zero, len) = match operand.cache().unwrap() {
                    CacheSlice::F32(x) => (x.as_ptr().addr(), x.iter().all(|&x| x == 0.0), x.len()),
                    CacheSlice::Bf16(x) => (x.as_ptr().addr(), x.iter().all(|&x| x == bf16::ZERO), x.len()),
                    CacheSlice::F16(x) => (x.as_ptr().addr(), x.iter().all(|&x| x == f16::ZERO), x.len()),
                };
                assert_eq!((start % LINE_BYTES, zero, len), (0, true, count), "{count} of {dtype:?}");
            }
        }
    }

    #[test]
    fn many_zeros_take_no_memory_before_they_are_touched() {
        const COUNT: usize = 4 << 20;
        // What is given back this large has glibc keep memory of that size in its heap from then on.
        drop(std::hint::black_box(vec![1u8; 31 << 20]));
        let tensor = zeros(COUNT, Dtype::Bf16).unwrap();
        let operand = Operand::of(&tensor);
        let CacheSlice::Bf16(numbers) = operand.cache().unwrap() else { panic!("not what was asked for") };
        // No page is longer, none shorter than 4 KiB.
        const PAGES: usize = 64 << 10;
        let (start, bytes) = (numbers.as_ptr().addr().next_multiple_of(PAGES), size_of_val(numbers) - PAGES);
        let mut pages = vec![0u8; bytes / 4096];
        // SAFETY: whole pages of memory that is borrowed, and room for a byte for each.
        let asked = unsafe { libc::mincore(start as *mut libc::c_void, bytes, pages.as_mut_ptr()) };
        assert_eq!((asked, pages.iter().filter(|&&page| page & 1 != 0).count()), (0, 0));
    }

    #[test]
    fn more_than_any_machine_has_is_an_error() {
        assert!(zeros(usize::MAX / 8, Dtype::F32).is_err());
    }
}

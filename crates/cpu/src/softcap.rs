//! Numbers kept within bounds, smoothly (Gemma 2's logits).

use super::Pool;
use super::exp::tanh;
use super::memory::Parts;
use super::simd::{Kernel, Simd, dispatch};

/// Entries below which a second thread is not worth waking.
const ENTRIES_PER_TASK: usize = 16 << 10;

/// Each `x` becomes `cap · tanh(x / cap)`.
pub fn softcap(pool: &Pool, numbers: &mut [f32], cap: f32) {
    let (count, numbers) = (numbers.len(), Parts::new(numbers));
    pool.run_ranges(count, ENTRIES_PER_TASK, |range| {
        // SAFETY: ranges do not overlap.
        let numbers = unsafe { numbers.part(range) };
        dispatch(pool.available(), Softcap { numbers, cap });
    });
}

struct Softcap<'a> {
    numbers: &'a mut [f32],
    cap: f32,
}

impl Kernel for Softcap<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cap = simd.splat(self.cap);
        for vector in self.numbers.chunks_mut(S::LANES) {
            // SAFETY: as many entries as the chunk has.
            unsafe {
                let x = simd.load_first(vector.as_ptr(), vector.len());
                simd.store_first(vector.as_mut_ptr(), simd.mul(cap, tanh(simd, simd.div(x, cap))), vector.len());
            }
        }
    }
}

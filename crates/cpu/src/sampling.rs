//! The largest logit of each row, for greedy sampling and as the reference of the softmax.

use super::Pool;
use super::exp::exp;
use super::memory::Parts;
use super::simd::{Kernel, Simd, dispatch};

/// Logits that are looked at together: the largest is first found to be in a block, then in its place.
const BLOCK: usize = 1024;

/// The index of the largest entry of each row; the lowest such index where several are equal; NaN never wins over a
/// number.
///
/// `logits` is `[rows, width]`, `out` is `[rows]`.
///
/// # Panics
/// If lengths do not match, or `width` is 0.
pub fn argmax(pool: &Pool, logits: &[f32], width: usize, out: &mut [u32]) {
    assert!(width > 0 && logits.len() == out.len() * width, "{} logits in rows of {width}", logits.len());
    let (rows, out) = (out.len(), Parts::new(out));
    pool.run_ranges(rows, 1, |rows| {
        for row in rows {
            // SAFETY: each row is one task's.
            let out = unsafe { out.part(row..row + 1) };
            dispatch(pool.available(), Argmax(&logits[row * width..][..width], &mut out[0]));
        }
    });
}

/// `out = logits - log Σ exp(logits)`, by rows of `width`.
///
/// # Panics
/// If lengths do not match, or `width` is 0.
pub fn log_softmax(pool: &Pool, logits: &[f32], width: usize, out: &mut [f32]) {
    assert!(width > 0 && logits.len().is_multiple_of(width), "{} logits in rows of {width}", logits.len());
    assert_eq!(logits.len(), out.len(), "out must be as long as logits");
    let (rows, out) = (logits.len() / width, Parts::new(out));
    pool.run_ranges(rows, 1, |rows| {
        for row in rows {
            // SAFETY: each row is one task's.
            let out = unsafe { out.part(row * width..(row + 1) * width) };
            dispatch(pool.available(), LogSoftmax(&logits[row * width..][..width], out));
        }
    });
}

/// The largest entry that is a number, −∞ where there is none.
#[inline(always)]
fn largest<S: Simd>(simd: S, entries: &[f32]) -> f32 {
    let lowest = simd.splat(f32::NEG_INFINITY);
    let mut most = [lowest; 4];
    let vectors = entries.chunks_exact(S::LANES);
    let rest = vectors.remainder();
    for (index, vector) in vectors.enumerate() {
        // SAFETY: a whole vector. In this order NaN loses.
        most[index % 4] = simd.max(unsafe { simd.load(vector.as_ptr()) }, most[index % 4]);
    }
    let largest = simd.largest(simd.max(simd.max(most[0], most[1]), simd.max(most[2], most[3])));
    rest.iter().fold(largest, |largest, &x| if x > largest { x } else { largest })
}

struct Argmax<'a>(&'a [f32], &'a mut u32);

impl Kernel for Argmax<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Argmax(row, out) = self;
        let (mut most, mut first) = (f32::NEG_INFINITY, 0);
        for (index, block) in row.chunks(BLOCK).enumerate() {
            let largest = largest(simd, block);
            if largest > most {
                (most, first) = (largest, index * BLOCK);
            }
        }
        // Where nothing is above −∞, the first number; where there is none, the first entry.
        let place = row[first..].iter().position(|&x| x == most).unwrap_or(0);
        *out = (first + place) as u32;
    }
}

struct LogSoftmax<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for LogSoftmax<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let LogSoftmax(row, out) = self;
        let most = largest(simd, row);
        let mut sum = simd.splat(0.0);
        for vector in row.chunks(S::LANES) {
            // SAFETY: as many entries as the chunk has; lanes beyond count nothing.
            let e = unsafe { exp(simd, simd.sub(simd.load_first(vector.as_ptr(), vector.len()), simd.splat(most))) };
            sum = simd.add(sum, simd.within(e, 0, vector.len(), simd.splat(0.0)));
        }
        let log_sum = most + simd.sum(sum).ln();
        for (out, x) in out.iter_mut().zip(row) {
            *out = x - log_sum;
        }
    }
}

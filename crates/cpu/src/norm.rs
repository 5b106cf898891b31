//! RMSNorm (Zhang and Sennrich, 2019), with the residual addition before it.

use super::Pool;
use super::memory::Parts;
use super::simd::{Kernel, Simd, dispatch};

/// Entries below which a second thread is not worth waking.
const ENTRIES_PER_TASK: usize = 16 << 10;

/// Rows that are added to the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct AddedRows<'a> {
    /// As many entries as the residual has.
    pub rows: &'a [f32],
    /// RMSNorm's weight, of one row: rows are normalised before they are added (Gemma 2 and 3).
    pub norm: Option<&'a [f32]>,
}

/// `residual += delta`, then `out = residual / sqrt(mean(residual²) + eps) * weight`, by rows of `weight.len()`.
///
/// `residual`, `delta` and `out` are `[rows, weight.len()]`.
///
/// # Panics
/// If lengths do not match.
pub fn add_rms_norm(
    pool: &Pool,
    residual: &mut [f32],
    delta: Option<AddedRows<'_>>,
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let width = weight.len();
    assert!(width > 0 && residual.len().is_multiple_of(width), "{} entries in rows of {width}", residual.len());
    if let Some(AddedRows { rows, norm }) = delta {
        assert_eq!(rows.len(), residual.len(), "delta must be as long as residual");
        assert!(norm.is_none_or(|norm| norm.len() == width), "delta's norm must be {width} long");
    }
    assert_eq!(out.len(), residual.len(), "out must be as long as residual");
    let rows = residual.len() / width;
    let (residual, out) = (Parts::new(residual), Parts::new(out));
    pool.run_ranges(rows, ENTRIES_PER_TASK / width, |rows| {
        let entries = rows.start * width..rows.end * width;
        // SAFETY: ranges of rows do not overlap.
        let (residual, out) = unsafe { (residual.part(entries.clone()), out.part(entries.clone())) };
        let delta = delta.map(|AddedRows { rows, norm }| AddedRows { rows: &rows[entries], norm });
        dispatch(pool.available(), AddRmsNorm { residual, delta, weight, eps, out });
    });
}

/// RMSNorm of single heads in place (Qwen 3's and Gemma 3's q and k norms): in each row of `rows`, `heads` heads of
/// `weight.len()` entries from entry `first` on.
///
/// # Panics
/// If the heads do not fit a row of `row_width`, or `rows` is not whole rows.
pub fn head_rms_norm(
    pool: &Pool,
    rows: &mut [f32],
    row_width: usize,
    first: usize,
    heads: usize,
    weight: &[f32],
    eps: f32,
) {
    let width = weight.len();
    assert!(
        width > 0 && row_width > 0 && rows.len().is_multiple_of(row_width) && first + heads * width <= row_width,
        "{heads} heads of {width} from {first} on, in {} entries by rows of {row_width}",
        rows.len()
    );
    let (count, rows) = (rows.len() / row_width, Parts::new(rows));
    pool.run_ranges(count, ENTRIES_PER_TASK / (heads * width).max(1), |range| {
        // SAFETY: ranges of rows do not overlap.
        let rows = unsafe { rows.part(range.start * row_width..range.end * row_width) };
        dispatch(pool.available(), HeadRmsNorm { rows, row_width, heads: first..first + heads * width, weight, eps });
    });
}

struct AddRmsNorm<'a> {
    residual: &'a mut [f32],
    delta: Option<AddedRows<'a>>,
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for AddRmsNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        let rows = self.residual.chunks_exact_mut(width).zip(self.out.chunks_exact_mut(width));
        for (index, (residual, out)) in rows.enumerate() {
            if let Some(AddedRows { rows, norm }) = self.delta {
                let delta = &rows[index * width..][..width];
                match norm {
                    None => add(simd, residual, delta),
                    Some(norm) => {
                        let factor = factor(simd, delta, self.eps);
                        // SAFETY: `delta`, `norm` and `out` are `width` long; what is in `out` is about to be replaced.
                        unsafe { scale(simd, delta.as_ptr(), norm, factor, out.as_mut_ptr()) };
                        add(simd, residual, out);
                    }
                }
            }
            let factor = factor(simd, residual, self.eps);
            // SAFETY: `residual`, `weight` and `out` are `width` long.
            unsafe { scale(simd, residual.as_ptr(), self.weight, factor, out.as_mut_ptr()) };
        }
    }
}

struct HeadRmsNorm<'a> {
    rows: &'a mut [f32],
    row_width: usize,
    heads: std::ops::Range<usize>,
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for HeadRmsNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in self.rows.chunks_exact_mut(self.row_width) {
            for head in row[self.heads.clone()].chunks_exact_mut(self.weight.len()) {
                let factor = factor(simd, head, self.eps);
                let head = head.as_mut_ptr();
                // SAFETY: the head and the weight are equally long; each vector is read before it is written.
                unsafe { scale(simd, head, self.weight, factor, head) };
            }
        }
    }
}

/// `row += delta`, equally long.
#[inline(always)]
fn add<S: Simd>(simd: S, row: &mut [f32], delta: &[f32]) {
    let whole = row.len() - row.len() % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `LANES` entries from `i` on are inside both.
        unsafe {
            let (row, delta) = (row.as_mut_ptr().add(i), delta.as_ptr().add(i));
            simd.store(row, simd.add(simd.load(row), simd.load(delta)));
        }
    }
    for (x, d) in row[whole..].iter_mut().zip(&delta[whole..]) {
        *x += d;
    }
}

/// 1 / sqrt(mean(row²) + eps), the sum taken in four vectors, so in an order that depends on the length only.
#[inline(always)]
fn factor<S: Simd>(simd: S, row: &[f32], eps: f32) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    for (index, vector) in row.chunks(S::LANES).enumerate() {
        // SAFETY: as many entries as the chunk has.
        let v = unsafe {
            if vector.len() == S::LANES {
                simd.load(vector.as_ptr())
            } else {
                simd.load_first(vector.as_ptr(), vector.len())
            }
        };
        sums[index % 4] = simd.fma(v, v, sums[index % 4]);
    }
    let sum = simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])));
    1.0 / (sum / row.len() as f32 + eps).sqrt()
}

/// `out = row * factor * weight`.
///
/// # Safety
/// `row` can be read and `out` written for the length of `weight`; they are the same or do not overlap.
#[inline(always)]
unsafe fn scale<S: Simd>(simd: S, row: *const f32, weight: &[f32], factor: f32, out: *mut f32) {
    let factors = simd.splat(factor);
    let whole = weight.len() - weight.len() % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: the caller's.
        unsafe {
            let x = simd.mul(simd.load(row.add(i)), factors);
            simd.store(out.add(i), simd.mul(x, simd.load(weight.as_ptr().add(i))));
        }
    }
    for (i, w) in weight.iter().enumerate().skip(whole) {
        // SAFETY: the caller's.
        unsafe { *out.add(i) = *row.add(i) * factor * w };
    }
}

//! `y = x · Wᵀ + bias`.

use super::{PackedMatrix, Pool};

/// `y[r, o] = bias[o] + Σ_k x[r, k] · w[o, k]`, accumulated in f32 along `k` in one fixed order.
///
/// `x` is `[rows, in]`, `y` is `[rows, out]`, both row-major.
///
/// # Panics
/// If a length does not match.
pub fn matmul(pool: &Pool, x: &[f32], rows: usize, w: &PackedMatrix, bias: Option<&[f32]>, y: &mut [f32]) {
    let (out, in_) = (w.out(), w.in_());
    assert_eq!(x.len(), rows * in_, "x of a [{rows}, {in_}] × [{in_}, {out}] product");
    assert_eq!(y.len(), rows * out, "y of a [{rows}, {in_}] × [{in_}, {out}] product");
    assert!(bias.is_none_or(|bias| bias.len() == out), "bias of a product of {out} columns");
    let _ = pool;
    let mut row = vec![0.0; in_];
    for o in 0..out {
        w.unpack_row(o, &mut row);
        for r in 0..rows {
            let start = bias.map_or(0.0, |bias| bias[o]);
            y[r * out + o] = x[r * in_..][..in_].iter().zip(&row).fold(start, |sum, (a, b)| sum + a * b);
        }
    }
}

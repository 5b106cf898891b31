//! RMSNorm, with the residual addition before it.

use super::Pool;

/// `residual += delta`, then `out = residual / sqrt(mean(residual²) + eps) * weight`, by rows of `weight.len()`.
///
/// `residual`, `delta` and `out` are `[rows, weight.len()]`.
///
/// # Panics
/// If lengths do not match.
pub fn add_rms_norm(
    pool: &Pool,
    residual: &mut [f32],
    delta: Option<&[f32]>,
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let width = weight.len();
    assert!(width > 0 && residual.len().is_multiple_of(width), "{} entries in rows of {width}", residual.len());
    assert!(delta.is_none_or(|delta| delta.len() == residual.len()), "delta must be as long as residual");
    assert_eq!(out.len(), residual.len(), "out must be as long as residual");
    let _ = pool;
    if let Some(delta) = delta {
        residual.iter_mut().zip(delta).for_each(|(r, d)| *r += d);
    }
    for (row, out) in residual.chunks(width).zip(out.chunks_mut(width)) {
        let scale = 1.0 / (row.iter().map(|x| x * x).sum::<f32>() / width as f32 + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(row).zip(weight) {
            *out = x * scale * w;
        }
    }
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
    let _ = pool;
    for row in rows.chunks_mut(row_width) {
        for head in row[first..first + heads * width].chunks_mut(width) {
            let scale = 1.0 / (head.iter().map(|x| x * x).sum::<f32>() / width as f32 + eps).sqrt();
            head.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w);
        }
    }
}

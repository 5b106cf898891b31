//! What choosing a token needs of a row of logits.

use super::Pool;

/// The index of the largest entry of each row; the lowest such index where several are equal; NaN never wins over a
/// number.
///
/// `logits` is `[rows, width]`, `out` is `[rows]`.
///
/// # Panics
/// If lengths do not match, or `width` is 0.
pub fn argmax(pool: &Pool, logits: &[f32], width: usize, out: &mut [u32]) {
    assert!(width > 0 && logits.len() == out.len() * width, "{} logits in rows of {width}", logits.len());
    let _ = pool;
    for (row, out) in logits.chunks(width).zip(out) {
        let mut best = (0, f32::NEG_INFINITY);
        for (i, &x) in row.iter().enumerate() {
            if x > best.1 {
                best = (i as u32, x);
            }
        }
        *out = best.0;
    }
}

/// `out = logits - log Σ exp(logits)`, by rows of `width`.
///
/// # Panics
/// If lengths do not match, or `width` is 0.
pub fn log_softmax(pool: &Pool, logits: &[f32], width: usize, out: &mut [f32]) {
    assert!(width > 0 && logits.len().is_multiple_of(width), "{} logits in rows of {width}", logits.len());
    assert_eq!(logits.len(), out.len(), "out must be as long as logits");
    let _ = pool;
    for (row, out) in logits.chunks(width).zip(out.chunks_mut(width)) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = row.iter().map(|x| (x - max).exp()).sum::<f32>().ln() + max;
        row.iter().zip(out).for_each(|(x, out)| *out = x - log_sum);
    }
}

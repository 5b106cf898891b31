//! Logits of tokens that must not be chosen become −∞.

use super::Pool;
use super::memory::Parts;

/// Tokens of a word of a mask.
const TOKENS: usize = u32::BITS as usize;

/// Makes those of `logits`, `[_, width]`, −∞ that the masks of `rows` do not allow. `bits` is `[rows, width / 32]`, rounded up: bit
/// `i % 32` of word `i / 32` allows token `i`.
///
/// # Panics
/// If lengths do not match, a row is beyond `logits`, or rows do not ascend.
pub fn mask_logits(pool: &Pool, logits: &mut [f32], width: usize, rows: &[u32], bits: &[u32]) {
    let words = width.div_ceil(TOKENS);
    assert_eq!(bits.len(), rows.len() * words, "a mask for each row");
    assert!(rows.is_sorted_by(|one, next| one < next), "each row once");
    assert!(rows.last().is_none_or(|&row| (row as usize + 1) * width <= logits.len()), "rows of the logits");
    let logits = Parts::new(logits);
    pool.run_ranges(rows.len(), 1, |range| {
        for index in range {
            let start = rows[index] as usize * width;
            // SAFETY: each row is one task's, as none comes twice.
            let row = unsafe { logits.part(start..start + width) };
            for (tokens, &word) in row.chunks_mut(TOKENS).zip(&bits[index * words..][..words]) {
                match word {
                    u32::MAX => {}
                    0 => tokens.fill(f32::NEG_INFINITY),
                    word => {
                        for (token, logit) in tokens.iter_mut().enumerate() {
                            *logit = if word >> token & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                        }
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mask_does_not_allow_is_minus_infinity_and_other_rows_stay() {
        let (width, rows) = (70, [1u32, 3]);
        let before: Vec<f32> = (0..4 * width).map(|number| number as f32).collect();
        let masks = [[u32::MAX, 0, 1 << 5], [0b1010, u32::MAX, 0]];
        let mut logits = before.clone();
        mask_logits(&Pool::new(2), &mut logits, width, &rows, masks.as_flattened());
        for (place, (&logit, &was)) in logits.iter().zip(&before).enumerate() {
            let (row, token) = (place / width, place % width);
            let mask = rows.iter().position(|&masked| masked as usize == row).map(|index| masks[index]);
            let is_allowed = mask.is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1);
            assert_eq!(logit, if is_allowed { was } else { f32::NEG_INFINITY }, "row {row}, token {token}");
        }
    }
}

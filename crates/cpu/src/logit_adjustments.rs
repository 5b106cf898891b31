//! Numbers that requests have added to, or taken from, the logits of some tokens before one of them is chosen: biases and penalties.
//!
//! Each row lists the tokens that it changes, so that a row without options costs nothing and no list is as long as the vocabulary.
//! All is single precision, each operation rounded by itself and in one order: the kernel for GPUs (`cuda/kernels/sampling.cu`) makes the
//! same bits of the same logits. The formulas are those of vLLM (`vllm/model_executor/layers/utils.py`, `apply_penalties`), the one for
//! repetitions from Keskar et al., "CTRL", 2019. What a token or a request is, is not known here.

use bytemuck::NoUninit;

use super::Pool;
use super::memory::Parts;

/// Penalties of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Penalties {
    /// Divides logits above 0 of counted tokens, and multiplies others.
    pub repetition: f32,
    /// Taken from a logit for each time that its token was generated.
    pub frequency: f32,
    /// Taken from a logit once its token was generated.
    pub presence: f32,
}

/// A token of a row's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TokenEntry {
    token: u32,
    /// A bias's bits, or a count.
    value: u32,
}

impl TokenEntry {
    /// `bias` is added to the token's logit; −∞ rules the token out.
    pub fn biased(token: u32, bias: f32) -> Self {
        Self { token, value: bias.to_bits() }
    }

    /// The token is in the prompt, or was generated so many times.
    pub fn counted(token: u32, generated: u32) -> Self {
        Self { token, value: generated }
    }

    /// Counts the token once more.
    pub fn count(&mut self) {
        self.value += 1;
    }
}

/// Changes of one row, as kernels take them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct RowAdjustments {
    row: u32,
    /// First of its entries, which are biases.
    biased: u32,
    /// First of its entries that are counts, behind the biases.
    counted: u32,
    /// End of its entries.
    end: u32,
    penalties: Penalties,
}

// SAFETY: seven numbers of 4 bytes side by side.
unsafe impl NoUninit for RowAdjustments {}
// SAFETY: two numbers of 4 bytes side by side.
unsafe impl NoUninit for TokenEntry {}

/// Changes of all rows of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitAdjustments {
    rows: Vec<RowAdjustments>,
    entries: Vec<TokenEntry>,
}

impl LogitAdjustments {
    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.entries.clear();
    }

    /// Changes `row`, which is behind those before it. A token is at most once in `biased`, and at most once in `counted`.
    pub fn push(&mut self, row: usize, biased: &[TokenEntry], counted: &[TokenEntry], penalties: Penalties) {
        let first = self.entries.len();
        self.entries.extend_from_slice(biased);
        self.entries.extend_from_slice(counted);
        let (behind, end) = (first + biased.len(), self.entries.len());
        let [row, biased, counted, end] = [row, first, behind, end].map(|number| number as u32);
        self.rows.push(RowAdjustments { row, biased, counted, end, penalties });
    }

    /// Tokens whose logits in `row` are changed, some of them twice.
    pub fn tokens_of(&self, row: u32) -> impl Iterator<Item = u32> {
        let found = self.rows.binary_search_by_key(&row, |adjusted| adjusted.row).ok();
        let range = found.map_or(0..0, |index| self.rows[index].biased as usize..self.rows[index].end as usize);
        self.entries[range].iter().map(|entry| entry.token)
    }

    /// Rows that are changed, ascending.
    pub fn rows(&self) -> &[RowAdjustments] {
        &self.rows
    }

    /// Entries of all rows.
    pub fn entries(&self) -> &[TokenEntry] {
        &self.entries
    }
}

/// Changes `logits`, rows of `width`, as `adjustments` say. Tokens that a row does not have are passed over.
///
/// # Panics
/// If there are no such rows.
pub fn adjust_logits(pool: &Pool, logits: &mut [f32], width: usize, adjustments: &LogitAdjustments) {
    let LogitAdjustments { rows, entries } = adjustments;
    assert!(rows.iter().all(|row| (row.row as usize + 1) * width <= logits.len()), "rows beyond the logits");
    assert!(rows.is_sorted_by(|a, b| a.row < b.row), "rows in order, each once");
    let logits = Parts::new(logits);
    pool.run_ranges(rows.len(), 1, |some| {
        for adjusted in &rows[some] {
            let start = adjusted.row as usize * width;
            // SAFETY: no other task has this row, as each is there once.
            let row = unsafe { logits.part(start..start + width) };
            let [biased, counted, end] = [adjusted.biased, adjusted.counted, adjusted.end].map(|index| index as usize);
            // Biases first, as in vLLM: a penalty scales what a bias has made of a logit.
            for entry in &entries[biased..counted] {
                if let Some(logit) = row.get_mut(entry.token as usize) {
                    *logit += f32::from_bits(entry.value);
                }
            }
            for entry in &entries[counted..end] {
                if let Some(logit) = row.get_mut(entry.token as usize) {
                    *logit = penalised(*logit, entry.value, adjusted.penalties);
                }
            }
        }
    });
}

fn penalised(logit: f32, generated: u32, penalties: Penalties) -> f32 {
    let Penalties { repetition, frequency, presence } = penalties;
    let scaled = if logit > 0.0 { logit / repetition } else { logit * repetition };
    // Two subtractions and not one of a sum, as in vLLM and in the kernel: the last bit decides between equal tokens.
    if generated == 0 { scaled } else { scaled - frequency * generated as f32 - presence }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Penalties = Penalties { repetition: 1.0, frequency: 0.0, presence: 0.0 };

    #[test]
    fn rows_change_by_their_own_lists_and_others_stay() {
        let mut adjustments = LogitAdjustments::default();
        let penalties = Penalties { repetition: 2.0, frequency: 0.5, presence: 0.25 };
        adjustments.push(0, &[TokenEntry::biased(1, 3.0), TokenEntry::biased(2, f32::NEG_INFINITY)], &[], NONE);
        let counted = [TokenEntry::counted(0, 0), TokenEntry::counted(1, 2), TokenEntry::counted(2, 1)];
        adjustments.push(2, &[TokenEntry::biased(0, 1.0)], &counted, penalties);
        let mut logits = [1.0, 1.0, 1.0, /**/ 5.0, 6.0, 7.0, /**/ 1.0, 4.0, -4.0];
        adjust_logits(&Pool::new(2), &mut logits, 3, &adjustments);
        assert_eq!(logits, [1.0, 4.0, f32::NEG_INFINITY, /**/ 5.0, 6.0, 7.0, /**/ 1.0, 0.75, -8.75]);
        adjustments.clear();
        assert!(adjustments.rows().is_empty() && adjustments.entries().is_empty());
    }
}

//! Log-probabilities of the token that was chosen from a row, and of the likeliest ones, before anything changed its logits.
//!
//! The sum over the vocabulary is one of whole numbers, of the weights at temperature 1 (`token_choice`): it does not depend on its order, so
//! that a GPU has the same. It is within 1e-5 of the exact one. Logits of equal size go by token id.

use bytemuck::{NoUninit, Pod, Zeroable};

use super::Pool;
use super::logit_adjustments::LogitAdjustments;
use super::memory::Parts;
use super::token_choice::{WEIGHT_BITS, weight_of};

/// A row whose log-probabilities are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LogprobsRow {
    /// Index of the row of logits.
    pub row: u32,
    /// Likeliest tokens that are wanted beside the one that is chosen.
    pub count: u32,
}

// SAFETY: two numbers of 4 bytes side by side.
unsafe impl NoUninit for LogprobsRow {}

/// Natural logarithms of a token's probability and of those of the likeliest ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// That of the token that was chosen.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Likeliest tokens that a row may want.
const MOST_LIKELIEST: usize = 20;

/// The same as a GPU finds it: its kernel writes these very bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RowSummary {
    highest: f32,
    /// Logit of the token that was chosen, before it was changed.
    chosen: f32,
    /// Sum of all weights at temperature 1.
    sum: u64,
    /// The likeliest tokens, to the first one that is beyond the vocabulary.
    tokens: [u32; MOST_LIKELIEST],
    logits: [f32; MOST_LIKELIEST],
}

// SAFETY: numbers side by side.
unsafe impl Zeroable for RowSummary {}
// SAFETY: 176 bytes of numbers side by side, at multiples of their sizes, of which any bits are some.
unsafe impl Pod for RowSummary {}

impl RowSummary {
    /// Log-probabilities of a row over `width` tokens, and of its `count` likeliest ones.
    pub fn logprobs(&self, count: u32, width: usize) -> TokenLogprobs {
        let logprob = |logit: f32| logprob(logit, self.highest, self.sum);
        let top = self.tokens.into_iter().zip(self.logits).take(count as usize);
        let top = top.take_while(|&(token, _)| (token as usize) < width);
        TokenLogprobs {
            logprob: logprob(self.chosen),
            top: top.map(|(token, logit)| (token, logprob(logit))).collect(),
        }
    }
}

/// A row before its logits are changed, as far as log-probabilities need it.
#[derive(Clone, Debug, PartialEq)]
pub struct RowDistribution {
    row: usize,
    highest: f32,
    /// Sum of all weights at temperature 1.
    sum: u64,
    /// The likeliest tokens with their logits.
    top: Vec<(u32, f32)>,
    /// Logits of tokens that are about to be changed.
    originals: Vec<(u32, f32)>,
}

impl RowDistribution {
    /// Log-probabilities where `token` was chosen from the row, whose logits are those of `changed`, `[rows, width]`, now.
    pub fn of_token(&self, token: u32, changed: &[f32], width: usize) -> TokenLogprobs {
        let original = self.originals.iter().find(|(changed, _)| *changed == token);
        let logit = original.map_or_else(|| changed[self.row * width + token as usize], |&(_, logit)| logit);
        let logprob = |logit: f32| logprob(logit, self.highest, self.sum);
        let top = self.top.iter().map(|&(token, logit)| (token, logprob(logit))).collect();
        TokenLogprobs { logprob: logprob(logit), top }
    }

    /// Index of the row of logits.
    pub fn row(&self) -> usize {
        self.row
    }
}

/// The log-probability of `logit` in a row whose largest one is `highest` and whose weights add up to `sum`.
fn logprob(logit: f32, highest: f32, sum: u64) -> f32 {
    // In double precision, as both devices have the same whole number and only the host takes its logarithm.
    let whole = (sum as f64 / (1u64 << WEIGHT_BITS) as f64).ln();
    (f64::from(logit) - f64::from(highest) - whole) as f32
}

/// Distributions of the rows of `logits`, `[rows, width]`, that are `wanted`, before `adjustments` are made.
///
/// # Panics
/// If there are no such rows.
pub fn row_distributions(
    pool: &Pool,
    logits: &[f32],
    width: usize,
    wanted: &[LogprobsRow],
    adjustments: &LogitAdjustments,
) -> Vec<RowDistribution> {
    let empty = RowDistribution { row: 0, highest: 0.0, sum: 0, top: Vec::new(), originals: Vec::new() };
    let mut found = vec![empty; wanted.len()];
    let parts = Parts::new(&mut found);
    pool.run_ranges(wanted.len(), 1, |some| {
        for index in some {
            let LogprobsRow { row, count } = wanted[index];
            let logits = &logits[row as usize * width..][..width];
            let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum = logits.iter().map(|&logit| weight_of(logit, highest)).sum();
            // The chosen token may be among those that are changed; of all others the row still has its logit.
            let originals = adjustments.tokens_of(row).filter(|&token| (token as usize) < width);
            // SAFETY: each is one task's.
            let found = unsafe { parts.part(index..index + 1) };
            found[0] = RowDistribution {
                row: row as usize,
                highest,
                sum,
                top: likeliest(logits, count as usize),
                originals: originals.map(|token| (token, logits[token as usize])).collect(),
            };
        }
    });
    found
}

/// The tokens of the `count` largest logits, in order.
fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    // By insertion: there are twenty at most, and most logits are below the least of them.
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (token, &logit) in (0..).zip(logits) {
        if logit.is_nan() || top.len() == count && top.last().is_none_or(|&(_, least)| logit <= least) {
            continue;
        }
        let place = top.partition_point(|&(_, other)| other >= logit);
        top.insert(place, (token, logit));
        top.truncate(count);
    }
    top
}

#[cfg(test)]
mod tests {
    use super::super::logit_adjustments::{Penalties, TokenEntry, adjust_logits};
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_a_softmax_of_logits_that_nothing_has_changed() {
        let (pool, width) = (Pool::new(2), 1000);
        let raw: Vec<f32> = (0..2 * width).map(|i| ((i * 7919) % 1009) as f32 / 97.0 - 4.0).collect();
        let (mut logits, mut adjustments) = (raw.clone(), LogitAdjustments::default());
        let none = Penalties { repetition: 1.0, frequency: 0.0, presence: 0.0 };
        adjustments.push(1, &[TokenEntry::biased(3, 50.0), TokenEntry::biased(7000, 1.0)], &[], none);
        let wanted = [LogprobsRow { row: 0, count: 0 }, LogprobsRow { row: 1, count: 5 }];
        let found = row_distributions(&pool, &logits, width, &wanted, &adjustments);
        adjust_logits(&pool, &mut logits, width, &adjustments);
        for (distribution, token) in found.iter().zip([999, 3]) {
            let row = &raw[distribution.row() * width..][..width];
            let whole = row.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
            let exact = |token: u32| f64::from(row[token as usize]) - whole;
            let logprobs = distribution.of_token(token, &logits, width);
            assert!((f64::from(logprobs.logprob) - exact(token)).abs() < 1e-5, "{logprobs:?}");
            let mut order: Vec<u32> = (0..width as u32).collect();
            order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
            let tokens: Vec<u32> = logprobs.top.iter().map(|&(token, _)| token).collect();
            assert_eq!(tokens, order[..wanted[distribution.row()].count as usize]);
            assert!(logprobs.top.iter().all(|&(token, x)| (f64::from(x) - exact(token)).abs() < 1e-5));
        }
    }

    #[test]
    fn equal_logits_go_by_token() {
        assert_eq!(likeliest(&[1.0, 2.0, 2.0, 0.0, 2.0, 1.0], 4), [(1, 2.0), (2, 2.0), (4, 2.0), (0, 1.0)]);
        assert_eq!(likeliest(&[1.0], 4), [(0, 1.0)]);
        assert!(likeliest(&[1.0, 2.0], 0).is_empty());
    }
}

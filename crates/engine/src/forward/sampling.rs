//! From one row of logits to one token: greedy, temperature, top-k, top-p.
//!
//! Randomness is a function of seed, request and position (a counter-based generator: Salmon et al., "Parallel random
//! numbers: as easy as 1, 2, 3", 2011; here ChaCha), so a token depends neither on what shares its batch nor on
//! preemption. Equal logits are ordered by token id. This file knows nothing of requests' progress.

use flashjob_config::Sampling;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Words of the generator's stream set aside for each position: one ChaCha block.
const WORDS_PER_POSITION: u128 = 16;

/// Most likely candidates that are looked at first for top-p; four times as many each time they do not suffice.
const FIRST_CANDIDATES: usize = 64;

/// Key of a counter-based generator, as Philox takes it: the random number of one choice depends on nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplingKey {
    /// The request's seed.
    pub seed: u64,
    /// The request's number.
    pub request: u32,
    /// Position in the sequence of the token that is chosen.
    pub position: u32,
}

impl SamplingKey {
    /// ChaCha8 at a counter: uniform in [0, 1), a multiple of 2⁻⁵³.
    pub fn uniform(self) -> f64 {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        // A place in the stream for each position, not a state that moves on: preemption and batching leave no trace.
        generator.set_stream(u64::from(self.request));
        generator.set_word_pos(u128::from(self.position) * WORDS_PER_POSITION);
        (generator.next_u64() >> 11) as f64 * (-53f64).exp2()
    }
}

/// A row of logits that no token can be chosen from: its largest is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFiniteLogits;

/// Chooses the next token; `best` is the lowest id among those with the largest logit, `candidates` memory to work in.
pub fn sample(
    logits: &[f32],
    best: u32,
    sampling: &Sampling,
    draw: SamplingKey,
    candidates: &mut Vec<Candidate>,
) -> Result<u32, NonFiniteLogits> {
    let highest = logits.get(best as usize).copied().filter(|logit| logit.is_finite()).ok_or(NonFiniteLogits)?;
    if sampling.is_greedy() {
        return Ok(best);
    }
    let temperature = f64::from(sampling.temperature);
    let weight = |logit: f32| (f64::from(logit - highest) / temperature).exp();
    let whole_vocabulary = sampling.top_k.is_none_or(|k| k.get() >= logits.len());
    // No candidate is ruled out: two passes over the row, without the copy and the sorting that ranking needs.
    if whole_vocabulary && sampling.top_p >= 1.0 {
        let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
        if total.is_nan() {
            return Err(NonFiniteLogits);
        }
        let weights = logits.iter().map(|&logit| weight(logit)).enumerate();
        return Ok(pick(weights.map(|(token, weight)| (token as u32, weight)), total * draw.uniform(), best));
    }
    candidates.clear();
    candidates.extend(logits.iter().enumerate().map(|(token, &logit)| Candidate { logit, token: token as u32 }));
    let kept = sampling.top_k.map_or(logits.len(), |k| k.get().min(logits.len()));
    if kept < candidates.len() {
        // Selection is linear; only the few that top-p looks at are sorted.
        candidates.select_nth_unstable_by(kept, Candidate::likelier_first);
        candidates.truncate(kept);
    }
    let total: f64 = nucleus(candidates, f64::from(sampling.top_p), weight);
    if total.is_nan() {
        return Err(NonFiniteLogits);
    }
    let weights = candidates.iter().map(|candidate| (candidate.token, weight(candidate.logit)));
    Ok(pick(weights, total * draw.uniform(), best))
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    logit: f32,
    token: u32,
}

impl Candidate {
    fn likelier_first(&self, other: &Self) -> std::cmp::Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

/// Keeps the fewest most likely candidates whose weight reaches `top_p` of the whole (Holtzman et al., "The curious
/// case of neural text degeneration", 2020), most likely first; returns their weight.
fn nucleus(candidates: &mut Vec<Candidate>, top_p: f64, weight: impl Fn(f32) -> f64) -> f64 {
    let wanted = if top_p < 1.0 {
        top_p * candidates.iter().map(|candidate| weight(candidate.logit)).sum::<f64>()
    } else {
        f64::INFINITY
    };
    let mut sorted = 0;
    let mut reached = 0.0;
    while sorted < candidates.len() {
        let end = if wanted.is_infinite() { candidates.len() } else { (sorted * 4).max(FIRST_CANDIDATES) };
        let end = end.min(candidates.len());
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted, Candidate::likelier_first);
        }
        candidates[sorted..end].sort_unstable_by(Candidate::likelier_first);
        for place in sorted..end {
            reached += weight(candidates[place].logit);
            if reached >= wanted {
                candidates.truncate(place + 1);
                return reached;
            }
        }
        sorted = end;
    }
    reached
}

/// The token at which the running sum of weights exceeds `target`.
fn pick(weights: impl Iterator<Item = (u32, f64)>, target: f64, best: u32) -> u32 {
    let mut sum = 0.0;
    let mut last = best;
    for (token, weight) in weights {
        sum += weight;
        if weight > 0.0 {
            last = token;
        }
        if sum > target {
            return token;
        }
    }
    // Rounding left the target a hair above the sum.
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashjob_cpu::{Pool, argmax};
    use proptest::prelude::*;
    use std::num::NonZeroUsize;

    fn choose(logits: &[f32], temperature: f32, top_k: Option<usize>, top_p: f32, position: u32) -> u32 {
        let sampling = Sampling { temperature, top_p, top_k: top_k.and_then(NonZeroUsize::new) };
        sample(logits, best(logits), &sampling, SamplingKey { seed: 1, request: 2, position }, &mut Vec::new()).unwrap()
    }

    fn best(logits: &[f32]) -> u32 {
        let mut best = [0];
        argmax(&Pool::new(1), logits, logits.len(), &mut best);
        best[0]
    }

    /// Tokens that may be chosen, by sorting everything.
    fn allowed(logits: &[f32], temperature: f32, top_k: Option<usize>, top_p: f32) -> Vec<u32> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(top_k.unwrap_or(logits.len()));
        let weights: Vec<f64> = order
            .iter()
            .map(|&token| (f64::from(logits[token] - logits[order[0]]) / f64::from(temperature)).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        let mut reached = 0.0;
        let mut kept = Vec::new();
        for (token, weight) in order.into_iter().zip(weights) {
            kept.push(token as u32);
            reached += weight;
            // A hair of tolerance: the sums may be added in another order.
            if reached >= f64::from(top_p) * total * (1.0 + 1e-12) {
                break;
            }
        }
        kept
    }

    proptest! {
        #[test]
        fn only_allowed_tokens_are_chosen(
            logits in prop::collection::vec(-8f32..8.0, 1..300), temperature in 0.1f32..3.0,
            top_k in prop::option::of(1..300usize), top_p in 0.05f32..=1.0, position in 0..1000u32,
        ) {
            let token = choose(&logits, temperature, top_k, top_p, position);
            prop_assert!(allowed(&logits, temperature, top_k, top_p).contains(&token));
        }

        #[test]
        fn greedy_takes_the_largest_logit_and_the_lowest_id_of_equals(values in prop::collection::vec(-3..3i8, 1..200)) {
            let logits: Vec<f32> = values.iter().map(|&value| f32::from(value)).collect();
            let highest = *values.iter().max().unwrap();
            let expected = values.iter().position(|&value| value == highest).unwrap() as u32;
            prop_assert_eq!(choose(&logits, 0.0, None, 1.0, 0), expected);
            prop_assert_eq!(choose(&logits, 1.0, Some(1), 1.0, 0), expected);
        }
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        for temperature in [0.7f32, 1.0, 2.0] {
            for top_k in [None, Some(4), Some(2)] {
                let kept = allowed(&logits, temperature, top_k, 1.0);
                let weight = |token: u32| f64::from(logits[token as usize] / temperature).exp();
                let total: f64 = kept.iter().map(|&token| weight(token)).sum();
                let draws = 20_000;
                let mut counts = [0u32; 4];
                for position in 0..draws {
                    counts[choose(&logits, temperature, top_k, 1.0, position) as usize] += 1;
                }
                for token in 0..4u32 {
                    let expected = if kept.contains(&token) { weight(token) / total } else { 0.0 };
                    let seen = f64::from(counts[token as usize]) / f64::from(draws);
                    // Five standard deviations of a binomial share, at its widest.
                    assert!(
                        (seen - expected).abs() < 5.0 * 0.5 / f64::from(draws).sqrt(),
                        "{token}: {seen} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn each_of_seed_request_and_position_changes_the_draw_and_nothing_else_does() {
        let draw = SamplingKey { seed: 3, request: 4, position: 5 };
        assert_eq!(draw.uniform(), draw.uniform());
        let others =
            [SamplingKey { seed: 4, ..draw }, SamplingKey { request: 5, ..draw }, SamplingKey { position: 6, ..draw }];
        assert!(others.iter().all(|other| other.uniform() != draw.uniform()));
        let mean = (0..4096).map(|position| SamplingKey { position, ..draw }.uniform()).sum::<f64>() / 4096.0;
        assert!((mean - 0.5).abs() < 0.03, "{mean}");
    }

    #[test]
    fn logits_that_are_not_numbers_are_refused() {
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };
        let draw = SamplingKey { seed: 0, request: 0, position: 0 };
        let hopeless: [&[f32]; 4] =
            [&[f32::INFINITY, 1.0], &[f32::NEG_INFINITY; 3], &[f32::NAN; 40], &[1.0, f32::INFINITY, f32::NAN]];
        for logits in hopeless {
            let chosen = sample(logits, best(logits), &sampling, draw, &mut Vec::new());
            assert_eq!(chosen, Err(NonFiniteLogits), "{logits:?}");
        }
        let warm = Sampling { temperature: 1.0, ..sampling };
        assert_eq!(sample(&[0.0, f32::NAN], 0, &warm, draw, &mut Vec::new()), Err(NonFiniteLogits));
        assert_eq!(sample(&[], 0, &sampling, draw, &mut Vec::new()), Err(NonFiniteLogits));
        assert_eq!(sample(&[f32::NEG_INFINITY, -3.0], 1, &warm, draw, &mut Vec::new()), Ok(1));
    }
}

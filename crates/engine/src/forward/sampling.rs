//! How a sequence's next token is chosen: its sampling parameters, and a random number of its own.
//!
//! Randomness is a function of seed, stream and position (a counter-based generator: Salmon et al., "Parallel random
//! numbers: as easy as 1, 2, 3", 2011; here ChaCha), so a token depends neither on what shares its batch nor on
//! preemption. It is drawn on the host, one number a row; what is made of it is the device's (`choose_tokens` of the package
//! `flashjob-cpu`). This file knows nothing of logits or of requests' progress.

use flashjob_config::Sampling;
use flashjob_cpu::TokenChoice;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Words of the generator's stream set aside for each position: one ChaCha block.
const WORDS_PER_POSITION: u128 = 16;

/// Key of a counter-based generator, as Philox takes it: the random number of one choice depends on nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplingKey {
    /// The request's seed.
    pub seed: u64,
    /// Number of the request among those that share the seed.
    pub stream: u32,
    /// Position in the sequence of the token that is chosen.
    pub position: u32,
}

impl SamplingKey {
    /// How the token at this position is chosen.
    pub fn choice(self, sampling: &Sampling) -> TokenChoice {
        let &Sampling { temperature, top_k, top_p } = sampling;
        TokenChoice::new(temperature, top_k, top_p, if sampling.is_greedy() { 0 } else { self.draw() })
    }

    /// ChaCha8 at a counter: uniform, in units of 2⁻⁶⁴.
    fn draw(self) -> u64 {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        // A place in the stream for each position, not a state that moves on: preemption and batching leave no trace.
        generator.set_stream(u64::from(self.stream));
        generator.set_word_pos(u128::from(self.position) * WORDS_PER_POSITION);
        generator.next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashjob_cpu::{NO_TOKEN, Pool, choose_tokens};
    use std::num::NonZeroUsize;

    fn choose(logits: &[f32], sampling: &Sampling, position: u32) -> u32 {
        let mut token = [0];
        let choice = SamplingKey { seed: 1, stream: 2, position }.choice(sampling);
        choose_tokens(&Pool::new(1), logits, logits.len(), &[choice], &mut token);
        token[0]
    }

    /// Probabilities by sorting, in double precision; for logits that are far from each other.
    fn probabilities(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(sampling.top_k.map_or(logits.len(), usize::from));
        let weight = |token: usize| f64::from(logits[token] / sampling.temperature).exp();
        let sum = |tokens: &[usize]| tokens.iter().map(|&token| weight(token)).sum::<f64>();
        let wanted = f64::from(sampling.top_p) * sum(&order);
        let kept = (1..order.len()).find(|&count| sum(&order[..count]) >= wanted).unwrap_or(order.len());
        order.truncate(kept);
        let probability = |token| if order.contains(&token) { weight(token) / sum(&order) } else { 0.0 };
        (0..logits.len()).map(probability).collect()
    }

    /// Pearson's statistic, and what it exceeds once in a million: the quantile of its distribution after Wilson and Hilferty (1931).
    fn chi_square(counts: &[u32], probabilities: &[f64]) -> (f64, f64) {
        let draws: f64 = counts.iter().copied().map(f64::from).sum();
        let expected = probabilities.iter().map(|probability| probability * draws);
        let cells: Vec<(f64, f64)> = counts.iter().copied().map(f64::from).zip(expected).collect();
        assert!(cells.iter().all(|&(seen, expected)| expected > 5.0 || (expected == 0.0 && seen == 0.0)), "{cells:?}");
        let possible = || cells.iter().filter(|(_, expected)| *expected > 0.0);
        let freedom = possible().count() as f64 - 1.0;
        let statistic = possible().map(|(seen, expected)| (seen - expected).powi(2) / expected).sum();
        let spread = 2.0 / (9.0 * freedom);
        (statistic, freedom * (1.0 - spread + 4.753 * spread.sqrt()).powi(3))
    }

    #[test]
    fn frequencies_pass_a_chi_square_test_with_each_option() {
        let logits = [0.3, -1.2, 2.1, 0.9, 1.7, -0.4, 0.0, 1.1, -2.0, 2.6, 0.6, -0.8];
        let draws = 60_000;
        let all = |temperature, top_k, top_p| Sampling { temperature, top_k: NonZeroUsize::new(top_k), top_p };
        for sampling in [
            all(1.0, 0, 1.0),
            all(0.6, 0, 1.0),
            all(2.0, 0, 1.0),
            all(1.0, 5, 1.0),
            all(1.5, 11, 1.0),
            all(1.0, 0, 0.95),
            all(1.0, 0, 0.5),
            all(0.7, 8, 0.9),
            all(1.3, 6, 0.6),
        ] {
            let mut counts = vec![0; logits.len()];
            (0..draws).for_each(|position| counts[choose(&logits, &sampling, position) as usize] += 1);
            let (statistic, critical) = chi_square(&counts, &probabilities(&logits, &sampling));
            assert!(statistic < critical, "{sampling:?}: {statistic} is not below {critical}: {counts:?}");
            // The test tells another temperature from this one, where that keeps the same tokens.
            if sampling.top_p == 1.0 {
                let other = Sampling { temperature: sampling.temperature * 1.1, ..sampling };
                let (statistic, critical) = chi_square(&counts, &probabilities(&logits, &other));
                assert!(statistic > critical, "{sampling:?} passes as {other:?}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_largest_logit_and_the_lowest_id_of_equals() {
        let logits = [1.0, 3.0, -2.0, 3.0, 0.5];
        for (temperature, top_k) in [(0.0, None), (0.0, NonZeroUsize::new(3)), (1.0, NonZeroUsize::new(1))] {
            assert_eq!(choose(&logits, &Sampling { temperature, top_k, top_p: 1.0 }, 0), 1);
        }
    }

    #[test]
    fn each_of_seed_stream_and_position_changes_the_draw_and_nothing_else_does() {
        let key = SamplingKey { seed: 3, stream: 4, position: 5 };
        assert_eq!(key.draw(), key.draw());
        let others =
            [SamplingKey { seed: 4, ..key }, SamplingKey { stream: 5, ..key }, SamplingKey { position: 6, ..key }];
        assert!(others.iter().all(|other| other.draw() != key.draw()));
        let uniform = |position| SamplingKey { position, ..key }.draw() as f64 * (-64f64).exp2();
        let mean = (0..4096).map(uniform).sum::<f64>() / 4096.0;
        assert!((mean - 0.5).abs() < 0.03, "{mean}");
    }

    #[test]
    fn no_token_is_chosen_from_logits_that_are_not_finite() {
        let greedy = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };
        let warm = Sampling { temperature: 1.0, ..greedy };
        let hopeless: [&[f32]; 4] =
            [&[f32::INFINITY, 1.0], &[f32::NEG_INFINITY; 3], &[f32::NAN; 40], &[1.0, f32::INFINITY, f32::NAN]];
        for (logits, sampling) in hopeless.into_iter().flat_map(|logits| [(logits, greedy), (logits, warm)]) {
            assert_eq!(choose(logits, &sampling, 0), NO_TOKEN, "{logits:?}");
        }
        assert_eq!(choose(&[0.0, f32::NAN], &warm, 0), NO_TOKEN);
        assert_eq!(choose(&[0.0, f32::NAN], &greedy, 0), 0);
        assert_eq!(choose(&[f32::NEG_INFINITY, -3.0], &warm, 0), 1);
    }
}

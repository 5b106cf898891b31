//! The next token of each row of logits: temperature, min-p, top-k, top-p and a draw, in whole numbers.
//!
//! A token's *distance* is how far its logit is behind the largest, in units of 2⁻¹⁸ halvings of its probability; its *weight* is 2⁴⁰,
//! halved so often. Candidates are ordered by distance, equal ones by token id. Sums of whole numbers do not depend on their
//! order, so threads may add them as they like: the kernel for GPUs (`cuda/kernels/sampling.cu`) chooses the same token from the same
//! logits, bit for bit. Min-p is a largest distance, as the logarithm of a share of the likeliest token's probability is one.
//!
//! Nothing is sorted. The last candidate that top-k or top-p keeps is found digit by digit of its distance (radix select: Alabi et
//! al., "Fast k-selection algorithms for graphics processing units", 2012), by number or by weight.

use std::num::NonZeroUsize;
use std::ops::Range;

use bytemuck::NoUninit;

use super::Pool;
use super::memory::Parts;
use super::sampling::argmax;
use super::simd::{Kernel, Simd, dispatch};

/// The token of a row from which none can be chosen, as its logits are not finite.
pub const NO_TOKEN: u32 = u32::MAX;

/// Bits of a distance that are less than one halving.
const FRACTION_BITS: u32 = 18;

/// The largest distance: it stands for all larger ones, too, whose weight is 0.
const FARTHEST: u32 = (1 << 24) - 1;

/// Units of distance for each unit of a logit at temperature 1.
const UNITS_AT_1: f32 = (1 << FRACTION_BITS) as f32 * std::f32::consts::LOG2_E;

/// Bits of a digit of a distance, which has three.
const DIGIT_BITS: u32 = 8;

/// Bits of the largest weight, 2⁴⁰. Of less likely tokens nothing is left, and a vocabulary of 2²⁴ fits 64 bits.
pub(super) const WEIGHT_BITS: u32 = 40;

/// 2⁻ˣ for `x` in 0..1 is `1 + x · (HALVING[0] + x · (HALVING[1] + …))`, within 2.5e-7 of it in single precision: a minimax polynomial
/// of the relative error (Remez), its constant term fixed at 1.
const HALVING: [f32; 5] = [-0.693_143_7, 0.240_180_15, -0.055_297_36, 0.009_205_799, -0.000_944_903_7];

/// Tokens that are added up before the sum is looked at.
const BLOCK: usize = 1024;

/// How the next token is chosen from a row of logits, as kernels take it: that for GPUs reads these very bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct TokenChoice {
    /// Units of distance for each unit of a logit; 0 takes the likeliest token.
    units_per_logit: f32,
    /// Candidates that are kept at most, at least 1.
    top_k: u32,
    /// The largest distance of a candidate.
    farthest: u32,
    /// None: sizes of 64 bits follow.
    padding: u32,
    /// Share of their weight that is kept, in units of 2⁻⁶⁴; `u64::MAX` keeps all.
    top_p: u64,
    /// Uniform random number, in units of 2⁻⁶⁴.
    draw: u64,
}

impl TokenChoice {
    /// `temperature` ≥ 0, of which 0 takes the likeliest token; `top_p` in (0, 1]; `draw` a uniform random number in units of 2⁻⁶⁴.
    pub fn new(temperature: f32, top_k: Option<NonZeroUsize>, top_p: f32, draw: u64) -> Self {
        let top_k = top_k.map_or(u32::MAX, |k| u32::try_from(k.get()).unwrap_or(u32::MAX));
        let units = f64::from(1 << FRACTION_BITS) * std::f64::consts::LOG2_E / f64::from(temperature);
        Self {
            // Finite, so that a distance of nothing stays nothing.
            units_per_logit: if temperature == 0.0 || top_k == 1 { 0.0 } else { units.min(f64::from(f32::MAX)) as f32 },
            top_k,
            farthest: FARTHEST,
            padding: 0,
            top_p: (f64::from(top_p) * 64f64.exp2()) as u64,
            draw,
        }
    }

    /// Leaves tokens out that have less than the share `min_p`, in [0, 1], of the likeliest one's probability: before top-k and top-p.
    #[must_use]
    pub fn with_min_p(self, min_p: f32) -> Self {
        // A probability of 2⁻ᵈ of the likeliest one's lies at distance d, whatever the temperature: no pass over the row is needed.
        let units = f64::from(1 << FRACTION_BITS) * -f64::from(min_p).log2();
        Self { farthest: units.min(f64::from(FARTHEST)) as u32, ..self }
    }

    /// True where the likeliest token is taken.
    pub fn is_greedy(&self) -> bool {
        self.units_per_logit == 0.0
    }
}

// SAFETY: numbers side by side, four of 4 bytes and two of 8, each at a multiple of its size.
unsafe impl NoUninit for TokenChoice {}

/// Chooses a token from each row of `logits`, `[rows, width]`, as `choices`, `[rows]`, say, into `tokens`, `[rows]`. It is
/// [`NO_TOKEN`] where the largest logit is not finite, or any is NaN and the likeliest token is not all that is asked for.
///
/// # Panics
/// If lengths do not match, or `width` is 0.
pub fn choose_tokens(pool: &Pool, logits: &[f32], width: usize, choices: &[TokenChoice], tokens: &mut [u32]) {
    assert_eq!(choices.len(), tokens.len(), "as many choices as tokens");
    argmax(pool, logits, width, tokens);
    let (rows, tokens) = (choices.len(), Parts::new(tokens));
    pool.run_ranges(rows, 1, |rows| {
        for row in rows {
            // SAFETY: each row is one task's.
            let token = unsafe { tokens.part(row..row + 1) };
            let (logits, choice) = (&logits[row * width..][..width], choices[row]);
            dispatch(pool.available(), Choose { logits, choice, token: &mut token[0] });
        }
    });
}

/// Replaces the likeliest token of a row by the one that is chosen.
struct Choose<'a> {
    logits: &'a [f32],
    choice: TokenChoice,
    token: &'a mut u32,
}

impl Kernel for Choose<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Choose { logits, choice, token } = self;
        let highest = logits[*token as usize];
        if !highest.is_finite() {
            *token = NO_TOKEN;
        } else if !choice.is_greedy() {
            let any_nan = logits.iter().fold(false, |any, logit| any | logit.is_nan());
            *token = if any_nan { NO_TOKEN } else { Candidates::new(logits, highest, &choice).choose(&choice) };
        }
    }
}

/// The weight of a token at `distance`: single-precision products and sums, each rounded by itself, so that every device has the
/// same bits.
#[inline(always)]
fn weight(distance: u32) -> u64 {
    let x = (distance & ((1 << FRACTION_BITS) - 1)) as i32 as f32 * (1.0 / (1 << FRACTION_BITS) as f32);
    let [a, b, c, d, e] = HALVING;
    let halved = ((((e * x + d) * x + c) * x + b) * x + a) * x + 1.0;
    // SAFETY: between 2²³ and 2²⁴.
    let scaled = unsafe { (halved * (1 << 24) as f32).to_int_unchecked::<i32>() };
    (u64::from(scaled as u32) << (WEIGHT_BITS - 24)) >> (distance >> FRACTION_BITS)
}

/// The weight of a token with `logit` at temperature 1, where the largest one is `highest`.
pub(super) fn weight_of(logit: f32, highest: f32) -> u64 {
    let units = (highest - logit) * UNITS_AT_1;
    // What is no number has no weight.
    if units.is_nan() { 0 } else { weight(units.min(FARTHEST as f32) as u32) }
}

/// `share` of `whole`, in units of 2⁻⁶⁴.
#[inline(always)]
fn part(whole: u64, share: u64) -> u64 {
    ((u128::from(whole) * u128::from(share)) >> 64) as u64
}

/// The first of `sums` with which they reach `wanted`, which becomes what is wanted of that one alone.
#[inline(always)]
fn reaching(sums: &[u64], wanted: &mut u64) -> Option<usize> {
    sums.iter().position(|&sum| {
        let reached = *wanted <= sum;
        *wanted -= if reached { 0 } else { sum };
        reached
    })
}

/// Tokens that may be chosen.
struct Candidates<'a> {
    logits: &'a [f32],
    highest: f32,
    units_per_logit: f32,
    /// Tokens that are nearer are candidates, and as far away those before `end`.
    farthest: u32,
    end: usize,
}

impl<'a> Candidates<'a> {
    #[inline(always)]
    fn new(logits: &'a [f32], highest: f32, choice: &TokenChoice) -> Self {
        Self { logits, highest, units_per_logit: choice.units_per_logit, farthest: choice.farthest, end: logits.len() }
    }

    #[inline(always)]
    fn choose(mut self, choice: &TokenChoice) -> u32 {
        if (choice.top_k as usize) < self.logits.len() {
            // Min-p may have left fewer.
            self.keep(|_| 1, |whole| u64::from(choice.top_k).min(whole));
        }
        if choice.top_p < u64::MAX {
            self.keep(weight, |whole| part(whole, choice.top_p).max(1));
        }
        let whole = self.sum(0..self.logits.len(), weight);
        self.first_reaching(part(whole, choice.draw) + 1, weight) as u32
    }

    #[inline(always)]
    fn distance(&self, logit: f32) -> u32 {
        let units = (self.highest - logit) * self.units_per_logit;
        // SAFETY: at least 0, as no logit is higher, and at most the farthest.
        unsafe { units.min(FARTHEST as f32).to_int_unchecked::<i32>() as u32 }
    }

    #[inline(always)]
    fn has(&self, token: usize, distance: u32) -> bool {
        (distance < self.farthest) | ((distance == self.farthest) & (token < self.end))
    }

    /// The sum of the `amount`s at the distances of the candidates among `tokens`.
    #[inline(always)]
    fn sum(&self, tokens: Range<usize>, amount: impl Fn(u32) -> u64) -> u64 {
        let amount = |(token, &logit): (usize, &f32)| {
            let distance = self.distance(logit);
            if self.has(token, distance) { amount(distance) } else { 0 }
        };
        tokens.clone().zip(&self.logits[tokens]).map(amount).sum()
    }

    /// The first token, in order of id, with which the `amount`s of candidates reach `wanted`, which is at most their sum.
    #[inline(always)]
    fn first_reaching(&self, mut wanted: u64, amount: impl Fn(u32) -> u64 + Copy) -> usize {
        let width = self.logits.len();
        for first in (0..width).step_by(BLOCK) {
            let end = (first + BLOCK).min(width);
            let sum = self.sum(first..end, amount);
            if wanted <= sum {
                let reaches = |&token: &usize| {
                    let own = self.sum(token..token + 1, amount);
                    let reached = wanted <= own;
                    wanted -= if reached { 0 } else { own };
                    reached
                };
                return (first..end).find(reaches).unwrap_or(end - 1);
            }
            wanted -= sum;
        }
        width - 1
    }

    /// Keeps the fewest candidates, nearest first, whose `amount`s reach what is `wanted` of the sum of all, from 1 to that sum.
    #[inline(always)]
    fn keep(&mut self, amount: impl Fn(u32) -> u64 + Copy, wanted: impl Fn(u64) -> u64) {
        let (mut rest, mut distance, mut as_far) = (None, 0, 0);
        for shift in [2 * DIGIT_BITS, DIGIT_BITS, 0] {
            let mut sums = [0; 1 << DIGIT_BITS];
            for (token, &logit) in self.logits.iter().enumerate() {
                let own = self.distance(logit);
                if own >> (shift + DIGIT_BITS) == distance && self.has(token, own) {
                    sums[(own >> shift) as usize % sums.len()] += amount(own);
                }
            }
            let rest = rest.get_or_insert_with(|| wanted(sums.iter().sum()));
            let digit = reaching(&sums, rest).unwrap_or(sums.len() - 1);
            (distance, as_far) = (distance << DIGIT_BITS | digit as u32, sums[digit]);
        }
        // Of those that are equally far, the ones with the lowest ids.
        let each = amount(distance);
        let kept = rest.unwrap_or(0).div_ceil(each);
        let at = |other: u32| u64::from(other == distance);
        let end = match kept * each < as_far {
            true => self.first_reaching(kept, at) + 1,
            false if distance == self.farthest => self.end,
            false => self.logits.len(),
        };
        (self.farthest, self.end) = (distance, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By sorting everything.
    fn by_sorting(logits: &[f32], choice: &TokenChoice) -> u32 {
        let highest = logits.iter().copied().fold(f32::MIN, f32::max);
        let all = Candidates::new(logits, highest, choice);
        let mut order: Vec<(u32, u32)> =
            (0..).zip(logits).map(|(token, &logit)| (all.distance(logit), token)).collect();
        order.retain(|&(distance, _)| distance <= choice.farthest);
        order.sort();
        order.truncate(choice.top_k as usize);
        let sum = |kept: &[(u32, u32)]| kept.iter().map(|&(distance, _)| weight(distance)).sum::<u64>();
        if choice.top_p < u64::MAX {
            let wanted = part(sum(&order), choice.top_p).max(1);
            order.truncate((1..order.len()).find(|&count| sum(&order[..count]) >= wanted).unwrap_or(order.len()));
        }
        order.sort_by_key(|&(_, token)| token);
        let target = part(sum(&order), choice.draw);
        let chosen = (1..=order.len()).find(|&count| sum(&order[..count]) > target).unwrap();
        order[chosen - 1].1
    }

    proptest! {
        #[test]
        fn the_token_is_the_one_that_sorting_finds(
            logits in prop::collection::vec(prop_oneof![-9f32..9.0, (-3..3i8).prop_map(f32::from)], 1..300),
            temperature in prop_oneof![0.01f32..3.0, Just(1.0), Just(1e-30), Just(1e30)],
            top_k in prop::option::of(2..300usize), top_p in prop_oneof![0.01f32..=1.0, Just(1.0)],
            min_p in prop_oneof![Just(0.0f32), Just(1.0), 0.0f32..1.0], draw: u64,
        ) {
            let choice = TokenChoice::new(temperature, top_k.and_then(NonZeroUsize::new), top_p, draw).with_min_p(min_p);
            let mut token = [0];
            choose_tokens(&Pool::new(1), &logits, logits.len(), &[choice], &mut token);
            prop_assert_eq!(token[0], by_sorting(&logits, &choice));
        }
    }

    #[test]
    fn weights_are_those_of_a_softmax_and_never_grow_with_the_distance() {
        assert_eq!(weight(0), 1 << WEIGHT_BITS);
        assert_eq!(weight(FARTHEST), 0);
        let mut before = weight(0);
        for distance in 0..FARTHEST {
            let weight = weight(distance);
            assert!(weight <= before, "{distance}");
            before = weight;
            let exact = f64::from(WEIGHT_BITS) - f64::from(distance) / f64::from(1 << FRACTION_BITS);
            let exact = exact.exp2();
            // What rounding to a whole number takes, and the polynomial.
            assert!((weight as f64 - exact).abs() <= 1.0 + 2.5e-7 * exact, "{distance}: {weight}, {exact}");
        }
    }
}

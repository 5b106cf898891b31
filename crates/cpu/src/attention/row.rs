//! Online softmax (Milakov and Gimelshein, 2018) of one row over one chunk, and the merging of spans, as split-KV merges splits.

use std::ops::Range;

use super::super::exp::{exp, tanh};
use super::super::simd::Simd;
use super::CHUNK;

/// The largest score so far and the sum of e^(score − largest).
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) largest: f32,
    pub(super) sum: f32,
}

impl Running {
    /// State before the first key.
    pub(super) const NONE: Running = Running { largest: f32::NEG_INFINITY, sum: 0.0 };

    /// True where no key was seen.
    #[inline(always)]
    pub(super) fn is_none(self) -> bool {
        self.largest == f32::NEG_INFINITY && self.sum == 0.0
    }
}

/// Turns scores into weights e^(score − largest), 0 for keys that are not `seen` (of this chunk; not empty), and
/// brings `running` up to date. Returns the factor for what was summed with earlier weights.
#[inline(always)]
pub(super) fn weigh<S: Simd>(
    simd: S,
    scores: &mut [f32; CHUNK],
    seen: Range<usize>,
    softcap: Option<f32>,
    running: &mut Running,
) -> f32 {
    let nothing = simd.splat(f32::NEG_INFINITY);
    let mut most = nothing;
    for at in (0..CHUNK).step_by(S::LANES) {
        let inside = |x: usize| x.clamp(at, at + S::LANES) - at;
        // SAFETY: `LANES` entries from `at` on are inside.
        unsafe {
            let to = scores.as_mut_ptr().add(at);
            let mut score = simd.load(to);
            if let Some(cap) = softcap {
                score = simd.mul(tanh(simd, simd.div(score, simd.splat(cap))), simd.splat(cap));
            }
            score = simd.within(score, inside(seen.start), inside(seen.end), nothing);
            most = simd.max(score, most);
            simd.store(to, score);
        }
    }
    let chunk = simd.largest(most);
    // Relative to the largest score so far, so that no exponential overflows; earlier sums are rescaled by the factor.
    let largest = if chunk > running.largest { chunk } else { running.largest };
    let subtract = simd.splat(largest);
    let mut sum = simd.splat(0.0);
    for at in (0..CHUNK).step_by(S::LANES) {
        // SAFETY: `LANES` entries from `at` on are inside.
        unsafe {
            let to = scores.as_mut_ptr().add(at);
            let weight = exp(simd, simd.sub(simd.load(to), subtract));
            sum = simd.add(sum, weight);
            simd.store(to, weight);
        }
    }
    let factor = exp_of(simd, running.largest - largest);
    *running = Running { largest, sum: running.sum * factor + simd.sum(sum) };
    factor
}

/// Merges what a row has of one span into what it has of all before: order matters to the last bit.
#[inline(always)]
pub(super) fn merge<S: Simd>(
    simd: S,
    total: &mut Running,
    total_values: &mut [f32],
    span: Running,
    span_values: &[f32],
) {
    if span.is_none() {
        return;
    }
    // Copied, not scaled by e⁰: the first span of a row keeps its bits whether it is merged or not.
    if total.is_none() {
        *total = span;
        total_values.copy_from_slice(span_values);
        return;
    }
    let largest = if span.largest > total.largest { span.largest } else { total.largest };
    let (a, b) = (exp_of(simd, total.largest - largest), exp_of(simd, span.largest - largest));
    *total = Running { largest, sum: total.sum * a + span.sum * b };
    for (to, from) in total_values.iter_mut().zip(span_values) {
        *to = *to * a + from * b;
    }
}

#[inline(always)]
fn exp_of<S: Simd>(simd: S, x: f32) -> f32 {
    let mut e = 0.0;
    // SAFETY: one entry.
    unsafe { simd.store_first(&mut e, exp(simd, simd.splat(x)), 1) };
    e
}

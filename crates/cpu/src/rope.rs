//! Rotary position embedding (RoPE: Su et al., 2021), fused with writing K and V to the cache.

use super::cache::Stored;
use super::memory::Parts;
use super::simd::{Kernel, Simd, dispatch};
use super::{CacheLayout, CacheSliceMut, Pool};

/// Entries below which a second thread is not worth waking.
const ENTRIES_FOR_A_TASK: usize = 4 << 10;

/// Cosines and sines of the angles by position, scaling included.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[max_position, dim / 2]`.
    pub cos: Vec<f32>,
    /// `[max_position, dim / 2]`.
    pub sin: Vec<f32>,
    /// Rotated entries of a head, even; the others stay as they are.
    pub dim: usize,
}

/// Rotates q and k in place and writes k and v to the cache.
///
/// - `qkv`: `[tokens, (heads + 2 * kv_heads) * head_dim]`: in each row first the heads of q, then of k, then of v.
///   Entry `i` of a head is paired with entry `i + dim / 2` (Hugging Face's layout).
/// - `positions`: `[tokens]`, rows of `rope`.
/// - `slots`: `[tokens]`, `block * block_size + offset` in the caches. Where several tokens name one slot, the last wins.
///
/// # Panics
/// If lengths do not match, the caches are of different types, or a position or slot is out of bounds.
#[allow(clippy::too_many_arguments)]
pub fn rope_and_cache(
    pool: &Pool,
    qkv: &mut [f32],
    layout: CacheLayout,
    positions: &[u32],
    slots: &[u32],
    rope: &RopeTable,
    k_cache: CacheSliceMut<'_>,
    v_cache: CacheSliceMut<'_>,
) {
    let shape = layout.shape();
    let (tokens, half, width) = (positions.len(), rope.dim / 2, shape.qkv_width());
    assert_eq!(qkv.len(), tokens * width, "qkv of {tokens} tokens with {shape:?}");
    assert_eq!(slots.len(), tokens, "one slot for each of {tokens} tokens");
    assert!(rope.dim.is_multiple_of(2) && rope.dim <= shape.head_dim, "{} rotated entries in {shape:?}", rope.dim);
    assert_eq!(rope.cos.len(), rope.sin.len(), "as many sines as cosines");
    let angles = rope.cos.len().checked_div(half).unwrap_or(usize::MAX);
    for &position in positions {
        assert!((position as usize) < angles, "position {position} of {angles}");
    }
    let blocks = k_cache.as_slice().len() / layout.block_keys();
    assert_eq!(blocks, v_cache.as_slice().len() / layout.block_values(), "as many blocks of values as of keys");
    let cached = blocks * layout.block_size();
    for &slot in slots {
        assert!((slot as usize) < cached, "slot {slot} of {cached}");
    }
    let tokens = Tokens { qkv: Parts::new(qkv), layout, positions, slots, rope };
    match (k_cache, v_cache) {
        (CacheSliceMut::F32(k), CacheSliceMut::F32(v)) => tokens.run(pool, k, v),
        (CacheSliceMut::Bf16(k), CacheSliceMut::Bf16(v)) => tokens.run(pool, k, v),
        (CacheSliceMut::F16(k), CacheSliceMut::F16(v)) => tokens.run(pool, k, v),
        _ => panic!("keys and values are cached in different types"),
    }
}

/// The arguments of [`rope_and_cache`], checked.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    qkv: Parts<'a, f32>,
    layout: CacheLayout,
    positions: &'a [u32],
    slots: &'a [u32],
    rope: &'a RopeTable,
}

impl Tokens<'_> {
    fn run<T: Stored>(&self, pool: &Pool, k_cache: &mut [T], v_cache: &mut [T]) {
        let (k_cache, v_cache) = (Parts::new(k_cache), Parts::new(v_cache));
        // By heads, not tokens: then no two threads write one slot, whatever `slots` says.
        let shape = self.layout.shape();
        let heads = shape.heads + 2 * shape.kv_heads;
        let compute = |index: usize| {
            // Those that write to the cache have the most to wait for: they come first.
            let head = (index + shape.heads) % heads;
            dispatch(pool.available(), Head { tokens: self, head, k_cache, v_cache });
        };
        if self.positions.len() * shape.qkv_width() < ENTRIES_FOR_A_TASK {
            (0..heads).for_each(compute);
        } else {
            pool.run(heads, compute);
        }
    }
}

/// One head of q, k or v, of all tokens.
struct Head<'a, T> {
    tokens: &'a Tokens<'a>,
    head: usize,
    k_cache: Parts<'a, T>,
    v_cache: Parts<'a, T>,
}

impl<T: Stored> Kernel for Head<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Tokens { qkv, layout, positions, slots, rope } = *self.tokens;
        let (shape, block_size) = (layout.shape(), layout.block_size());
        let (d, width, half) = (shape.head_dim, shape.qkv_width(), rope.dim / 2);
        let first_v = shape.heads + shape.kv_heads;
        for (token, (&position, &slot)) in positions.iter().zip(slots).enumerate() {
            let at = token * width + self.head * d;
            // SAFETY: each head is one task's.
            let x = unsafe { qkv.part(at..at + d) };
            if self.head < first_v {
                let angles = position as usize * half..(position as usize + 1) * half;
                rotate(simd, &mut x[..rope.dim], &rope.cos[angles.clone()], &rope.sin[angles]);
            }
            if self.head < shape.heads {
                continue;
            }
            if let Some(&next) = slots.get(token + 1) {
                self.ask_for(simd, slot as usize, next as usize);
            }
            let (block, token) = (slot as usize / block_size, slot as usize % block_size);
            if self.head < first_v {
                let (start, column) = layout.key(block, self.head - shape.heads, token);
                let place = T::STORAGE.place(column, layout.panel());
                // SAFETY: each KV head of the caches is one task's.
                let panel = unsafe { self.k_cache.part(start..start + d * layout.panel()) };
                let column = panel[place..].iter_mut().step_by(layout.panel());
                column.zip(&*x).for_each(|(to, &x)| *to = T::narrow(x));
            } else {
                for first in (0..d).step_by(layout.panel()) {
                    let (start, _) = layout.value(block, self.head - first_v, token, first);
                    // SAFETY: each KV head of the caches is one task's.
                    let row = unsafe { self.v_cache.part(start..start + layout.panel()) };
                    for (j, &x) in x[first..].iter().take(layout.panel()).enumerate() {
                        row[T::STORAGE.place(j, layout.panel())] = T::narrow(x);
                    }
                }
            }
        }
    }
}

impl<T: Stored> Head<'_, T> {
    /// Asks for what will be written for the token of slot `next`, where that is elsewhere than what `slot` is written
    /// to: when each token is of another sequence, every write goes to a line that is not at hand.
    #[inline(always)]
    fn ask_for<S: Simd>(&self, simd: S, slot: usize, next: usize) {
        let Tokens { layout, .. } = *self.tokens;
        let (shape, block_size, d) = (layout.shape(), layout.block_size(), layout.shape().head_dim);
        let first_v = shape.heads + shape.kv_heads;
        if slot / layout.panel() == next / layout.panel() {
            return;
        }
        let (block, token) = (next / block_size, next % block_size);
        if self.head < first_v {
            let (start, column) = layout.key(block, self.head - shape.heads, token);
            for i in 0..d {
                let at = start + i * layout.panel() + column;
                simd.prefetch(self.k_cache.pointer(at..at + 1).cast());
            }
        } else {
            for first in (0..d).step_by(layout.panel()) {
                let (start, _) = layout.value(block, self.head - first_v, token, first);
                simd.prefetch(self.v_cache.pointer(start..start + 1).cast());
            }
        }
    }
}

/// Turns each pair `(x[i], x[i + half])` by its angle.
#[inline(always)]
fn rotate<S: Simd>(simd: S, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = x.len() / 2;
    let (a, b) = x.split_at_mut(half);
    let whole = half - half % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `LANES` entries from `i` on are inside all four.
        unsafe {
            let (to_a, to_b) = (a.as_mut_ptr().add(i), b.as_mut_ptr().add(i));
            let (cos, sin) = (simd.load(cos.as_ptr().add(i)), simd.load(sin.as_ptr().add(i)));
            let (a, b) = (simd.load(to_a), simd.load(to_b));
            simd.store(to_a, simd.sub(simd.mul(a, cos), simd.mul(b, sin)));
            simd.store(to_b, simd.add(simd.mul(b, cos), simd.mul(a, sin)));
        }
    }
    for i in whole..half {
        (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
    }
}

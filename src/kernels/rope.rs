//! Rotary position embedding, fused with writing K and V to the cache.

use half::{bf16, f16};

use super::{AttentionShape, CacheSliceMut, Pool};

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
/// - `slots`: `[tokens]`, `block * page + offset` in the caches. Where two tokens name one slot, one of them wins.
///
/// # Panics
/// If lengths do not match, or a position or slot is out of bounds.
#[allow(clippy::too_many_arguments)]
pub fn rope_and_cache(
    pool: &Pool,
    qkv: &mut [f32],
    shape: AttentionShape,
    positions: &[u32],
    slots: &[u32],
    rope: &RopeTable,
    k_cache: CacheSliceMut<'_>,
    v_cache: CacheSliceMut<'_>,
) {
    shape.check();
    let (tokens, half, width) = (positions.len(), rope.dim / 2, shape.qkv_width());
    assert_eq!(qkv.len(), tokens * width, "qkv of {tokens} tokens with {shape:?}");
    assert_eq!(slots.len(), tokens, "one slot for each of {tokens} tokens");
    assert!(rope.dim.is_multiple_of(2) && rope.dim <= shape.head_dim, "{} rotated entries in {shape:?}", rope.dim);
    assert_eq!(rope.cos.len(), rope.sin.len(), "as many sines as cosines");
    let _ = pool;
    for (row, &position) in qkv.chunks_mut(width).zip(positions) {
        let cos = &rope.cos[position as usize * half..][..half];
        let sin = &rope.sin[position as usize * half..][..half];
        for head in row.chunks_mut(shape.head_dim).take(shape.heads + shape.kv_heads) {
            for i in 0..half {
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos[i] - b * sin[i];
                head[i + half] = b * cos[i] + a * sin[i];
            }
        }
    }
    let q_width = shape.out_width();
    let kv_width = shape.cache_width();
    for (cache, first) in [(k_cache, q_width), (v_cache, q_width + kv_width)] {
        let rows = qkv.chunks(width).map(|row| &row[first..first + kv_width]).zip(slots);
        match cache {
            CacheSliceMut::F32(cache) => {
                rows.for_each(|(row, &slot)| cache[slot as usize * kv_width..][..kv_width].copy_from_slice(row));
            }
            CacheSliceMut::Bf16(cache) => rows.for_each(|(row, &slot)| {
                let cache = &mut cache[slot as usize * kv_width..][..kv_width];
                cache.iter_mut().zip(row).for_each(|(to, from)| *to = bf16::from_f32(*from));
            }),
            CacheSliceMut::F16(cache) => rows.for_each(|(row, &slot)| {
                let cache = &mut cache[slot as usize * kv_width..][..kv_width];
                cache.iter_mut().zip(row).for_each(|(to, from)| *to = f16::from_f32(*from));
            }),
        }
    }
}

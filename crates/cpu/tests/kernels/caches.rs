//! Caches of any storage as tests see them: `[slots, kv_heads * head_dim]`, whatever the layout.

use flashjob_cpu::{CacheLayout, CacheSlice, CacheSliceMut, Isa};
use half::{bf16, f16};

use super::Storage;

/// Keys and values of one layer.
pub struct Caches {
    layout: CacheLayout,
    isa: Isa,
    entries: Entries,
}

enum Entries {
    F32([Vec<f32>; 2]),
    Bf16([Vec<bf16>; 2]),
    F16([Vec<f16>; 2]),
}

impl Caches {
    /// `blocks` blocks laid out for `isa`, every entry `start`.
    pub fn new(isa: Isa, storage: Storage, layout: CacheLayout, blocks: usize, start: f32) -> Caches {
        let counts = [blocks * layout.block_keys(), blocks * layout.block_values()];
        let entries = match storage {
            Storage::F32 => Entries::F32(counts.map(|count| vec![start; count])),
            Storage::Bf16 => Entries::Bf16(counts.map(|count| vec![bf16::from_f32(start); count])),
            Storage::F16 => Entries::F16(counts.map(|count| vec![f16::from_f32(start); count])),
        };
        Caches { layout, isa, entries }
    }

    pub fn slices(&self) -> [CacheSlice<'_>; 2] {
        match &self.entries {
            Entries::F32(both) => both.each_ref().map(|entries| CacheSlice::F32(entries)),
            Entries::Bf16(both) => both.each_ref().map(|entries| CacheSlice::Bf16(entries)),
            Entries::F16(both) => both.each_ref().map(|entries| CacheSlice::F16(entries)),
        }
    }

    pub fn slices_mut(&mut self) -> [CacheSliceMut<'_>; 2] {
        match &mut self.entries {
            Entries::F32(both) => both.each_mut().map(|entries| CacheSliceMut::F32(entries)),
            Entries::Bf16(both) => both.each_mut().map(|entries| CacheSliceMut::Bf16(entries)),
            Entries::F16(both) => both.each_mut().map(|entries| CacheSliceMut::F16(entries)),
        }
    }

    /// Keys and values, `[slots, kv_heads * head_dim]`.
    pub fn tokens(&self) -> [Vec<f32>; 2] {
        let widened: [Vec<f32>; 2] = match &self.entries {
            Entries::F32(both) => both.clone(),
            Entries::Bf16(both) => both.each_ref().map(|entries| entries.iter().map(|x| x.to_f32()).collect()),
            Entries::F16(both) => both.each_ref().map(|entries| entries.iter().map(|x| x.to_f32()).collect()),
        };
        let [keys, values] = widened;
        [self.in_order(&keys, true), self.in_order(&values, false)]
    }

    fn in_order(&self, cache: &[f32], keys: bool) -> Vec<f32> {
        let (shape, block_size) = (self.layout.shape(), self.layout.block_size());
        let (kv_heads, d) = (shape.kv_heads, shape.head_dim);
        let panel = if self.isa == Isa::Avx512 { 32 } else { 16 };
        // In a row of 16-bit brain floats the halves are interleaved.
        let interleaved = matches!(self.entries, Entries::Bf16(_));
        let place = |j: usize| if interleaved { j % (panel / 2) * 2 + j / (panel / 2) } else { j };
        let head = block_size * if keys { d } else { d.next_multiple_of(panel) };
        let at = |slot: usize, kv_head: usize, i: usize| {
            let (block, token) = (slot / block_size, slot % block_size);
            let within = match keys {
                true => (token / panel * d + i) * panel + place(token % panel),
                false => (i / panel * block_size + token) * panel + place(i % panel),
            };
            cache[(block * kv_heads + kv_head) * head + within]
        };
        let slots = cache.len() / (kv_heads * head) * block_size;
        (0..slots * kv_heads * d).map(|entry| at(entry / (kv_heads * d), entry / d % kv_heads, entry % d)).collect()
    }
}

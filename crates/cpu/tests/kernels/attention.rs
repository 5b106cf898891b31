//! Paged attention.

use flashjob_cpu::{
    AttentionShape, CacheLayout, CacheSlice, PagedAttention, Pool, RopeTable, paged_attention, rope_and_cache,
};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::caches::Caches;
use super::{Storage, any_storage, assert_same_bits, on_every_pool, pools, reference, values};

/// Sequences in a paged cache whose blocks lie in random order; entries that no sequence owns are NaN.
struct Scene {
    shape: AttentionShape,
    storage: Storage,
    block_size: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    /// For each sequence `[keys, heads, head_dim]`: a query for every position.
    queries: Vec<Vec<f32>>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    block_table: Vec<u32>,
    max_blocks: usize,
    blocks: usize,
}

impl Scene {
    fn new(shape: AttentionShape, storage: Storage, block_size: usize, lengths: &[usize], seed: u64) -> Scene {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let width = shape.cache_width();
        let max_blocks = lengths.iter().map(|keys| keys.div_ceil(block_size)).max().unwrap_or(0) + 1;
        let used: usize = lengths.iter().map(|keys| keys.div_ceil(block_size)).sum();
        let mut free: Vec<u32> = (0..used as u32 + 3).collect();
        free.shuffle(&mut random);
        let mut scene = Scene {
            shape,
            storage,
            block_size,
            window: None,
            softcap: None,
            queries: lengths.iter().map(|keys| values(random.random(), keys * shape.out_width())).collect(),
            keys: Vec::new(),
            values: Vec::new(),
            blocks: used + 3,
            block_table: vec![u32::MAX; lengths.len() * max_blocks],
            max_blocks,
        };
        for (sequence, &keys) in lengths.iter().enumerate() {
            let stored =
                |seed| -> Vec<f32> { values(seed, keys * width).into_iter().map(|x| storage.round(x * 3.0)).collect() };
            scene.keys.push(stored(random.random()));
            scene.values.push(stored(random.random()));
            for block in 0..keys.div_ceil(block_size) {
                scene.block_table[sequence * max_blocks + block] = free.pop().unwrap();
            }
        }
        scene
    }

    fn layout(&self, pool: &Pool) -> CacheLayout {
        CacheLayout::new(pool.isa(), self.shape, self.block_size)
    }

    /// As the engine writes them: unturned, since no entry rotates.
    fn caches(&self, pool: &Pool) -> Caches {
        let mut caches = Caches::new(pool.isa(), self.storage, self.layout(pool), self.blocks, f32::NAN);
        let width = self.shape.cache_width();
        for (sequence, (keys, values)) in self.keys.iter().zip(&self.values).enumerate() {
            let (mut qkv, mut slots) = (Vec::new(), Vec::new());
            for (key, (k, v)) in keys.chunks(width).zip(values.chunks(width)).enumerate() {
                qkv.resize(qkv.len() + self.shape.out_width(), 0.0);
                qkv.extend_from_slice(k);
                qkv.extend_from_slice(v);
                let block = self.block_table[sequence * self.max_blocks + key / self.block_size];
                slots.push(block * self.block_size as u32 + (key % self.block_size) as u32);
            }
            let rope = RopeTable { cos: vec![], sin: vec![], dim: 0 };
            let positions = vec![0; slots.len()];
            let [k, v] = caches.slices_mut();
            rope_and_cache(pool, &mut qkv, self.layout(pool), &positions, &slots, &rope, k, v);
        }
        caches
    }

    /// Runs one call with parts `(sequence, first query, one past its last query)`; returns the outputs of each.
    fn run(&self, pool: &Pool, parts: &[(usize, usize, usize)]) -> Vec<Vec<f32>> {
        let out_width = self.shape.out_width();
        let stride = self.shape.qkv_width();
        let (mut q, mut cu_q, mut cu_k, mut table) = (Vec::new(), vec![0], vec![0], Vec::new());
        for &(sequence, first, last) in parts {
            for query in first..last {
                q.extend_from_slice(&self.queries[sequence][query * out_width..][..out_width]);
                q.resize(q.len() + stride - out_width, f32::NAN);
            }
            cu_q.push(cu_q.last().unwrap() + (last - first) as u32);
            cu_k.push(cu_k.last().unwrap() + last as u32);
            table.extend_from_slice(&self.block_table[sequence * self.max_blocks..][..self.max_blocks]);
        }
        let caches = self.caches(pool);
        let [k_cache, v_cache] = caches.slices();
        let args = PagedAttention {
            layout: self.layout(pool),
            scale: 0.3,
            q: &q,
            q_stride: stride,
            k_cache,
            v_cache,
            cu_q: &cu_q,
            cu_k: &cu_k,
            block_table: &table,
            max_blocks: self.max_blocks,
            window: self.window,
            softcap: self.softcap,
        };
        let mut out = vec![f32::NAN; cu_q[parts.len()] as usize * out_width];
        paged_attention(pool, &args, &mut out);
        let bounds = cu_q.windows(2).map(|b| b[0] as usize * out_width..b[1] as usize * out_width);
        bounds.map(|bounds| out[bounds].to_vec()).collect()
    }

    fn expected(&self, sequence: usize, query: usize, head: usize) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim: d } = self.shape;
        let first = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
        let row = |entries: &'_ [f32], key: usize| {
            let at = (key * kv_heads + head / (heads / kv_heads)) * d;
            entries[at..at + d].to_vec()
        };
        let keys: Vec<Vec<f32>> = (first..=query).map(|key| row(&self.keys[sequence], key)).collect();
        let values: Vec<Vec<f32>> = (first..=query).map(|key| row(&self.values[sequence], key)).collect();
        let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let q = &self.queries[sequence][(query * heads + head) * d..][..d];
        reference::attention(q, &keys, &values, 0.3, self.softcap)
    }

    /// Compares outputs of `part` with f64: values are at most 3, and the bound is 1e-5 of that.
    fn check(&self, part: (usize, usize, usize), out: &[f32], pool: &Pool) {
        let (sequence, first, last) = part;
        let d = self.shape.head_dim;
        for query in first..last {
            for head in 0..self.shape.heads {
                let found = &out[((query - first) * self.shape.heads + head) * d..][..d];
                for (i, expected) in self.expected(sequence, query, head).into_iter().enumerate() {
                    let error = (f64::from(found[i]) - expected).abs();
                    let what = || format!("{pool:?}: sequence {sequence} query {query} head {head} entry {i}");
                    assert!(error <= 3e-5, "{}: {} instead of {expected}", what(), found[i]);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn matches_f64(
        storage in any_storage(),
        kv_heads in 1_usize..4,
        group in 1_usize..6,
        head_dim in prop::sample::select(vec![1, 7, 8, 16, 33, 64, 80, 128]),
        block_size in prop::sample::select(vec![32, 64, 96, 160]),
        sequences in prop::collection::vec((1_usize..150, 0_usize..20), 1..4),
        window in prop::option::of(1_usize..100),
        softcap in prop::option::of(0.5_f32..20.0),
        seed: u64,
    ) {
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim };
        let lengths: Vec<usize> = sequences.iter().map(|&(keys, _)| keys).collect();
        let mut scene = Scene::new(shape, storage, block_size, &lengths, seed);
        (scene.window, scene.softcap) = (window, softcap);
        let parts: Vec<_> = sequences
            .iter()
            .enumerate()
            .map(|(sequence, &(keys, queries))| (sequence, keys - queries.min(keys), keys))
            .collect();
        on_every_pool(|pool| {
            for (&part, out) in parts.iter().zip(scene.run(pool, &parts)) {
                scene.check(part, &out, pool);
            }
        });
    }
}

/// Long enough for several of the spans into which contexts are split.
#[test]
fn long_contexts_match_f64() {
    let shape = AttentionShape { heads: 3, kv_heads: 1, head_dim: 64 };
    for storage in Storage::ALL {
        let scene = Scene::new(shape, storage, 32, &[2500], 5);
        let part = (0, 2490, 2500);
        on_every_pool(|pool| scene.check(part, &scene.run(pool, &[part])[0], pool));
    }
}

#[test]
fn a_query_has_the_same_bits_in_prefill_chunks_decode_and_any_company() {
    let shapes = [
        AttentionShape { heads: 9, kv_heads: 3, head_dim: 64 },
        AttentionShape { heads: 2, kv_heads: 2, head_dim: 40 },
        AttentionShape { heads: 5, kv_heads: 1, head_dim: 20 },
    ];
    for (index, shape) in shapes.into_iter().enumerate() {
        for (window, softcap) in [(None, None), (Some(70), Some(5.0))] {
            let storage = Storage::ALL[index];
            let lengths = [1300, 3, 170];
            let mut scene = Scene::new(shape, storage, 32, &lengths, 11);
            (scene.window, scene.softcap) = (window, softcap);
            let whole = [(0, 0, 1300), (1, 0, 3), (2, 0, 170)];
            for [one, three] in pools() {
                let prefill = scene.run(three, &whole);
                let width = shape.out_width();
                let same = |part: (usize, usize, usize), out: &[f32], what: &str| {
                    let expected = &prefill[part.0][part.1 * width..part.2 * width];
                    assert_same_bits(out, expected, &format!("{what} {part:?} on {one:?}"));
                };
                let again = scene.run(one, &whole);
                whole.iter().zip(&again).for_each(|(&part, out)| same(part, out, "one thread"));
                for chunk in [(0, 0, 33), (0, 33, 500), (0, 500, 513), (0, 513, 1299), (0, 1025, 1300), (2, 1, 170)] {
                    same(chunk, &scene.run(three, &[chunk])[0], "chunk");
                }
                for query in [0, 31, 32, 63, 64, 511, 512, 700, 1023, 1024, 1299] {
                    let decode = (0, query, query + 1);
                    same(decode, &scene.run(three, &[decode])[0], "decode alone");
                    let company = [(2, 169, 170), decode, (1, 0, 3), (2, 5, 80)];
                    for (&part, out) in company.iter().zip(scene.run(three, &company)) {
                        same(part, &out, "decode in company");
                    }
                }
            }
        }
    }
}

/// A later token must not reach an earlier one, not even as 0 · ∞.
#[test]
fn a_query_does_not_feel_what_it_does_not_see() {
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 32 };
    let mut scene = Scene::new(shape, Storage::F32, 32, &[100], 3);
    let clean: Vec<Vec<Vec<f32>>> = pools().iter().map(|[_, pool]| scene.run(pool, &[(0, 0, 60)])).collect();
    let poison = |scene: &mut Scene, keys: std::ops::Range<usize>, value: f32| {
        for key in keys {
            let token = key * shape.cache_width()..(key + 1) * shape.cache_width();
            scene.keys[0][token.clone()].fill(value);
            scene.values[0][token].fill(value);
        }
    };
    for value in [f32::NAN, f32::INFINITY, f32::MAX] {
        poison(&mut scene, 60..100, value);
        for ([_, pool], clean) in pools().iter().zip(&clean) {
            let found = scene.run(pool, &[(0, 0, 100)]);
            assert_same_bits(&found[0][..60 * shape.out_width()], &clean[0], "before the poison");
        }
    }
    scene.window = Some(10);
    poison(&mut scene, 0..40, f32::NAN);
    poison(&mut scene, 60..100, 1.0);
    for [_, pool] in pools() {
        let found = scene.run(pool, &[(0, 49, 60)]);
        assert!(found[0].iter().all(|x| x.is_finite()), "keys before the window were felt");
    }
}

#[test]
fn scores_far_apart_neither_overflow_nor_vanish() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 16 };
    let mut scene = Scene::new(shape, Storage::F32, 32, &[200], 4);
    scene.queries[0].iter_mut().for_each(|x| *x *= 300.0);
    on_every_pool(|pool| {
        let part = (0, 0, 200);
        let out = scene.run(pool, &[part]);
        // Scores are in the thousands, with errors of some 1e-4: compare where one key clearly wins.
        for query in 0..200 {
            let found = &out[0][query * 16..][..16];
            assert!(found.iter().all(|x| x.abs() <= 3.0 + 1e-5), "query {query} left the hull of the values");
        }
    });
}

#[test]
fn wrong_arguments_are_refused() {
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 4 };
    let pool = &pools()[0][1];
    let layout = CacheLayout::new(pool.isa(), shape, 32);
    let q = vec![0.1; 3 * 8];
    let (keys, values) = (vec![0.1; 2 * layout.block_keys()], vec![0.1; 2 * layout.block_values()]);
    let fine = PagedAttention {
        layout,
        scale: 1.0,
        q: &q,
        q_stride: 8,
        k_cache: CacheSlice::F32(&keys),
        v_cache: CacheSlice::F32(&values),
        cu_q: &[0, 1, 3],
        cu_k: &[0, 32, 64],
        block_table: &[0, 1],
        max_blocks: 1,
        window: None,
        softcap: None,
    };
    let refuses = |args: PagedAttention<'_>, tokens: usize| {
        let mut out = vec![0.0; tokens * 8];
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| paged_attention(pool, &args, &mut out))).is_err()
    };
    assert!(!refuses(fine, 3));
    assert!(!refuses(PagedAttention { cu_q: &[0], cu_k: &[0], block_table: &[], ..fine }, 0), "no sequences");
    for (args, why) in [
        (PagedAttention { block_table: &[0, 2], ..fine }, "a block out of bounds"),
        (PagedAttention { block_table: &[0], ..fine }, "a short block table"),
        (PagedAttention { cu_k: &[0, 33, 65], ..fine }, "more keys than blocks"),
        (PagedAttention { cu_k: &[0, 32, 33], ..fine }, "fewer keys than queries"),
        (PagedAttention { cu_k: &[0, 32], ..fine }, "lengths that do not match"),
        (PagedAttention { cu_q: &[0, 2, 1], ..fine }, "lengths that shrink"),
        (PagedAttention { q: &q[..20], ..fine }, "too few queries"),
        (PagedAttention { k_cache: CacheSlice::F32(&keys[1..]), ..fine }, "a short cache"),
    ] {
        assert!(refuses(args, 3), "{why} was accepted");
    }
    assert!(refuses(fine, 2), "a short out was accepted");
    for (shape, block_size, why) in [
        (shape, 0, "an empty block"),
        (shape, 16, "half a block"),
        (AttentionShape { kv_heads: 0, ..shape }, 32, "no heads"),
    ] {
        let isa = pool.isa();
        assert!(std::panic::catch_unwind(|| CacheLayout::new(isa, shape, block_size)).is_err(), "{why} was accepted");
    }
}

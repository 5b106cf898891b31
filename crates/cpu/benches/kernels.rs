//! Speed of the kernels beside this machine's limits, measured in the same run.
//!
//! `cargo bench --bench kernels [-- FILTER]`, with `THREADS` in the environment (default: the CPU quota). Of each shape
//! the best and the median of several passes; weights of a whole model are walked through, so that no cache flatters.
#![allow(clippy::print_stdout, missing_docs)]

use std::time::{Duration, Instant};

use flashjob_block_format::BlockFormat;
use flashjob_cpu::{
    AddedRows, AttentionShape, CacheLayout, CacheSlice, CacheSliceMut, GateActivation, LINE_BYTES, Limits,
    PackedMatrix, PagedAttention, Pool, RopeTable, WeightSlice, add_rms_norm, argmax, cpu_quota_threads,
    gated_activation, matmul, measure_limits, paged_attention, prefer_huge_pages, rope_and_cache,
};
use half::bf16;

struct Model {
    name: &'static str,
    hidden: usize,
    inner: usize,
    shape: AttentionShape,
    vocabulary: usize,
}

const MODELS: [Model; 2] = [
    Model {
        name: "smol",
        hidden: 576,
        inner: 1536,
        shape: AttentionShape { heads: 9, kv_heads: 3, head_dim: 64 },
        vocabulary: 49152,
    },
    Model {
        name: "1b",
        hidden: 2048,
        inner: 8192,
        shape: AttentionShape { heads: 32, kv_heads: 8, head_dim: 64 },
        vocabulary: 128256,
    },
];

/// Weights of one shape are repeated until they fill this much memory.
const WALK_BYTES: usize = 200 << 20;

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let threads = std::env::var("THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or_else(cpu_quota_threads);
    let pool = Pool::new(threads);
    let limits = measure_limits(&pool, None).expect("no bound, no lack");
    println!(
        "{} threads, {}: GEMM {:.1} GFLOP/s, FMA {:.1} GFLOP/s, memory {:.1} GB/s",
        threads,
        pool.isa().name(),
        limits.flops_per_second / 1e9,
        limits.fma_flops_per_second.unwrap_or(f64::NAN) / 1e9,
        limits.bytes_per_second / 1e9
    );
    println!("of limit: the longer of (operations / GEMM) and (bytes / memory), over the time taken");
    let wanted = |name: &str| name.contains(&filter) || filter.starts_with(name);
    if wanted("dispatch") {
        dispatch(&pool);
    }
    for model in &MODELS {
        for storage in ["f32", "bf16", "f16", "q4_0", "q4_1", "q4_k", "q5_k", "q6_k", "q8_0"] {
            let name = format!("{} matmul {storage}", model.name);
            if wanted(&name) {
                products(&pool, model, storage, limits, &name);
            }
        }
        for storage in ["f32", "bf16"] {
            let name = format!("{} attention {storage}", model.name);
            if wanted(&name) {
                attention(&pool, model, storage, limits, &name, &filter);
            }
        }
        let name = format!("{} elementwise", model.name);
        if wanted(&name) {
            elementwise(&pool, model, limits, &name);
        }
    }
}

/// Best and median of a pass, over about `budget`.
fn time(budget: Duration, mut pass: impl FnMut()) -> (f64, f64) {
    pass();
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || begin.elapsed() < budget {
        let start = Instant::now();
        pass();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

fn report(name: &str, flops: f64, bytes: f64, (best, median): (f64, f64), limits: Limits) {
    let roof = (flops / limits.flops_per_second).max(bytes / limits.bytes_per_second);
    println!(
        "{name:<48} {:>9.1} µs  {:>6.1} GFLOP/s {:>6.1} GB/s  of limit {:.2} best {:.2} median  (FMA {:.2})",
        best * 1e6,
        flops / best / 1e9,
        bytes / best / 1e9,
        roof / best,
        roof / median,
        flops / limits.fma_flops_per_second.unwrap_or(f64::NAN) / best
    );
}

fn dispatch(pool: &Pool) {
    let (best, median) = time(Duration::from_millis(300), || {
        for _ in 0..100 {
            pool.run(pool.threads(), |task| {
                std::hint::black_box(task);
            });
        }
    });
    println!("dispatch of an empty job: {:.0} ns best, {:.0} ns median", best * 1e7, median * 1e7);
}

fn products(pool: &Pool, model: &Model, storage: &str, limits: Limits, name: &str) {
    let shapes = [
        ("qkv", model.hidden, model.shape.qkv_width()),
        ("o", model.shape.out_width(), model.hidden),
        ("gate_up", model.hidden, 2 * model.inner),
        ("down", model.inner, model.hidden),
        ("head", model.hidden, model.vocabulary),
    ];
    for (part, in_, out) in shapes {
        let blocks = BlockFormat::ALL.into_iter().find(|format| format.name() == storage);
        if blocks.is_some_and(|format| in_ % format.block_len() > 0) {
            continue;
        }
        let weight_bytes = match blocks {
            Some(format) => in_ * out / format.block_len() * format.block_bytes(),
            None => in_ * out * if storage == "f32" { 4 } else { 2 },
        };
        let copies = WALK_BYTES.div_ceil(weight_bytes);
        let wide: Vec<f32> = (0..in_ * out).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
        let packed: Vec<PackedMatrix> = (0..copies)
            .map(|_| match storage {
                _ if let Some(format) = blocks => {
                    // As half-precision scales 5e-4: any number does.
                    let bytes = vec![0x11; weight_bytes];
                    PackedMatrix::pack(pool, WeightSlice::Blocks(format, &bytes), out, in_)
                }
                "f32" => PackedMatrix::pack(pool, WeightSlice::F32(&wide), out, in_),
                "bf16" => {
                    let narrow: Vec<bf16> = wide.iter().map(|&x| bf16::from_f32(x)).collect();
                    PackedMatrix::pack(pool, WeightSlice::Bf16(&narrow), out, in_)
                }
                _ => {
                    let narrow: Vec<half::f16> = wide.iter().map(|&x| half::f16::from_f32(x)).collect();
                    PackedMatrix::pack(pool, WeightSlice::F16(&narrow), out, in_)
                }
            })
            .collect();
        if storage == "f32" {
            let start = Instant::now();
            drop(PackedMatrix::pack(pool, WeightSlice::F32(&wide), out, in_));
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{:<48} {:>6.1} GB/s read and written",
                format!("{name} {part} pack"),
                8e-9 * (in_ * out) as f64 / seconds
            );
        }
        for rows in [1, 8, 16, 64, 128, 512, 2048] {
            if part == "head" && rows > 64 {
                continue;
            }
            let x: Vec<f32> = (0..rows * in_).map(|i| ((i * 31) % 100) as f32 / 100.0 - 0.5).collect();
            let mut y = vec![0.0; rows * out];
            let mut next = 0;
            // One pass is a few milliseconds at least.
            let flops = 2.0 * (rows * in_ * out) as f64;
            let repeats = ((4e-3 * limits.flops_per_second / flops) as usize).clamp(1, copies);
            let (best, median) = time(Duration::from_millis(300), || {
                for _ in 0..repeats {
                    matmul(pool, &x, rows, &packed[next % copies], None, &mut y);
                    next += 1;
                }
            });
            let each = (best / repeats as f64, median / repeats as f64);
            let bytes = (weight_bytes + 4 * rows * (in_ + out)) as f64;
            report(&format!("{name} {part} {rows}×{in_}→{out}"), flops, bytes, each, limits);
        }
    }
}

fn attention(pool: &Pool, model: &Model, storage: &str, limits: Limits, name: &str, filter: &str) {
    let shape = model.shape;
    let layout = CacheLayout::new(pool.isa(), shape, 32);
    // Sequences, queries of each, keys of each.
    let cases = [
        (1, 1, 256),
        (16, 1, 192),
        (64, 1, 192),
        (1, 1, 8192),
        (16, 1, 2048),
        (4, 128, 128),
        (1, 512, 512),
        (1, 512, 4096),
    ];
    for (sequences, queries, keys) in cases {
        let case = format!("{name} {sequences} × {queries} of {keys}");
        if !case.contains(filter) {
            continue;
        }
        let blocks_each: usize = usize::div_ceil(keys, layout.block_size());
        let layers = (WALK_BYTES / (sequences * keys * shape.cache_width() * 8)).clamp(1, 64);
        assert_eq!(layout.block_keys(), layout.block_values());
        let entries = layout.block_keys() * sequences * blocks_each;
        let wide = |i: usize| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5;
        let narrow = |i: usize| bf16::from_f32(wide(i));
        let (count, narrow_count) = if storage == "f32" { (entries * layers, 0) } else { (0, entries * layers) };
        let (wide, values) = (huge(count, wide), huge(count, wide));
        let (narrow, narrow_values) = (huge(narrow_count, narrow), huge(narrow_count, narrow));
        let tokens = sequences * queries;
        let q: Vec<f32> = (0..tokens * shape.qkv_width()).map(|i| ((i * 31) % 100) as f32 / 50.0 - 1.0).collect();
        let cu_q: Vec<u32> = (0..=sequences).map(|s| (s * queries) as u32).collect();
        let cu_k: Vec<u32> = (0..=sequences).map(|s| (s * keys) as u32).collect();
        let table: Vec<u32> = (0..(sequences * blocks_each) as u32).collect();
        let mut out = vec![0.0; tokens * shape.out_width()];
        let mut next = 0;
        let (best, median) = time(Duration::from_millis(300), || {
            let layer = next % layers * entries;
            next += 1;
            let part = layer..layer + entries;
            let (k_cache, v_cache) = match storage {
                "f32" => (CacheSlice::F32(&wide[part.clone()]), CacheSlice::F32(&values[part])),
                _ => (CacheSlice::Bf16(&narrow[part.clone()]), CacheSlice::Bf16(&narrow_values[part])),
            };
            let args = PagedAttention {
                layout,
                scale: 0.125,
                q: &q,
                q_stride: shape.qkv_width(),
                k_cache,
                v_cache,
                cu_q: &cu_q,
                cu_k: &cu_k,
                block_table: &table,
                max_blocks: blocks_each,
                window: None,
                softcap: None,
            };
            paged_attention(pool, &args, &mut out);
        });
        let seen = (queries * (keys - queries)) as f64 + (queries * (queries + 1)) as f64 / 2.0;
        let flops = 4.0 * sequences as f64 * seen * shape.out_width() as f64;
        let width = if storage == "f32" { 4 } else { 2 };
        let bytes = (2 * width * sequences * keys * shape.cache_width()) as f64;
        report(&case, flops, bytes, (best, median), limits);
    }
}

/// `count` entries as the engine keeps its cache: in huge pages, from a cache line on.
fn huge<T: Copy>(count: usize, entry: impl Fn(usize) -> T) -> Huge<T> {
    let mut entries: Vec<T> = Vec::with_capacity(count + LINE_BYTES);
    prefer_huge_pages(entries.spare_capacity_mut());
    let first = entries.as_ptr().align_offset(LINE_BYTES);
    entries.extend((0..count + first).map(|i| entry(i.saturating_sub(first))));
    Huge { entries, first }
}

struct Huge<T> {
    entries: Vec<T>,
    first: usize,
}

impl<T> std::ops::Deref for Huge<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.entries[self.first..]
    }
}

impl<T> std::ops::DerefMut for Huge<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.entries[self.first..]
    }
}

fn elementwise(pool: &Pool, model: &Model, limits: Limits, name: &str) {
    let (shape, budget) = (model.shape, Duration::from_millis(100));
    for rows in [1, 16, 64, 512, 2048] {
        let entries = rows * model.hidden;
        let (mut residual, delta) = (vec![0.5; entries], vec![0.001; entries]);
        let (weight, mut out) = (vec![1.0; model.hidden], vec![0.0; entries]);
        let took = time(budget, || {
            add_rms_norm(pool, &mut residual, Some(AddedRows { rows: &delta, norm: None }), &weight, 1e-5, &mut out)
        });
        report(&format!("{name} add_rms_norm {rows}"), 0.0, 16.0 * entries as f64, took, limits);

        let (gate_up, mut out) = (vec![0.3; rows * 2 * model.inner], vec![0.0; rows * model.inner]);
        let took = time(budget, || gated_activation(pool, &gate_up, model.inner, GateActivation::Silu, &mut out));
        report(&format!("{name} silu {rows}"), 0.0, 12.0 * out.len() as f64, took, limits);

        // Tokens of one prompt, and of as many sequences as there are tokens, each in a block of its own.
        for (case, apart) in [("of a prompt", 1), ("apart", 256)] {
            let layout = CacheLayout::new(pool.isa(), shape, 32);
            let entries = layout.block_keys() * (rows * apart).div_ceil(layout.block_size());
            let layers = (WALK_BYTES / (entries * 8)).clamp(1, 64);
            let (mut keys, mut values) = (huge(entries * layers, |_| 0f32), huge(entries * layers, |_| 0f32));
            let mut qkv = vec![0.1; rows * shape.qkv_width()];
            let rope = RopeTable { cos: vec![0.6; 2048 * 32], sin: vec![0.8; 2048 * 32], dim: 64 };
            let positions: Vec<u32> = (0..rows as u32).collect();
            // Whatever is written was last touched long ago.
            let slots = |pass: usize| -> Vec<u32> {
                let first = if apart > 1 { pass / layers * 16 % apart } else { 0 };
                positions.iter().map(|position| position * apart as u32 + first as u32).collect()
            };
            let slots: Vec<Vec<u32>> = (0..16 * layers).map(slots).collect();
            let mut next = 0;
            let took = time(budget, || {
                let part = next % layers * entries..(next % layers + 1) * entries;
                next += 1;
                let (k, v) = (CacheSliceMut::F32(&mut keys[part.clone()]), CacheSliceMut::F32(&mut values[part]));
                rope_and_cache(pool, &mut qkv, layout, &positions, &slots[next % slots.len()], &rope, k, v);
            });
            let bytes = 4 * (2 * qkv.len() + 2 * rows * shape.cache_width());
            report(&format!("{name} rope_and_cache {rows} {case}"), 0.0, bytes as f64, took, limits);
        }
    }
    let rows = 16;
    let logits: Vec<f32> = (0..rows * model.vocabulary).map(|i| ((i * 7919) % 100_003) as f32).collect();
    let mut tokens = vec![0; rows];
    let took = time(budget, || argmax(pool, &logits, model.vocabulary, &mut tokens));
    report(&format!("{name} argmax {rows}"), 0.0, 4.0 * logits.len() as f64, took, limits);
}

//! Norms, rotary embedding with its cache write, gates, and rows of logits.

use flashjob_cpu::{
    AddedRows, AttentionShape, CacheLayout, GateActivation, Pool, RopeTable, add_rms_norm, argmax, gated_activation,
    head_rms_norm, log_softmax, rope_and_cache, softcap,
};
use proptest::prelude::*;

use super::caches::Caches;
use super::{Storage, any_storage, assert_same_bits, bits, on_every_pool, pools, reference, values};

#[track_caller]
fn assert_close(found: &[f32], expected: &[f64], relative: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.0_f64, |size, x| size.max(x.abs()));
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= relative * size, "{what}: entry {i} is {found}, f64 says {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn add_rms_norm_matches_f64(
        rows in 0_usize..20, width in 1_usize..700, with_delta: bool, with_norm: bool, seed: u64,
    ) {
        let (start, weight) = (values(seed, rows * width), values(seed ^ 1, width));
        let delta = with_delta.then(|| values(seed ^ 2, rows * width));
        let norm = with_norm.then(|| values(seed ^ 3, width));
        let added: Vec<f64> = match (&delta, &norm) {
            (None, _) => vec![0.0; rows * width],
            (Some(delta), None) => delta.iter().copied().map(f64::from).collect(),
            (Some(delta), Some(norm)) => {
                delta.chunks(width).flat_map(|row| reference::rms_norm(row, norm, 1e-5)).collect()
            }
        };
        let exact: Vec<f64> = start.iter().zip(&added).map(|(a, b)| f64::from(*a) + b).collect();
        on_every_pool(|pool| {
            let (mut residual, mut out) = (start.clone(), vec![f32::NAN; rows * width]);
            let delta = delta.as_deref().map(|rows| AddedRows { rows, norm: norm.as_deref() });
            add_rms_norm(pool, &mut residual, delta, &weight, 1e-5, &mut out);
            assert_close(&residual, &exact, 1e-6, "residual");
            let sum = residual;
            for (row, out) in sum.chunks(width).zip(out.chunks(width)) {
                assert_close(out, &reference::rms_norm(row, &weight, 1e-5), 1e-6, "norm");
            }
        });
    }

    #[test]
    fn softcap_matches_f64(count in 0_usize..5000, cap in 0.5_f32..60.0, seed: u64) {
        let start: Vec<f32> = values(seed, count).iter().map(|x| x * 40.0).collect();
        let exact: Vec<f64> =
            start.iter().map(|&x| f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh()).collect();
        on_every_pool(|pool| {
            let mut found = start.clone();
            softcap(pool, &mut found, cap);
            assert_close(&found, &exact, 1e-6, "softcap");
        });
    }

    #[test]
    fn head_rms_norm_touches_its_heads_only(
        rows in 0_usize..9, heads in 0_usize..5, width in 1_usize..130, before in 0_usize..9, after in 0_usize..9,
        seed: u64,
    ) {
        let row_width = before + heads * width + after;
        prop_assume!(row_width > 0);
        let (start, weight) = (values(seed, rows * row_width), values(seed ^ 1, width));
        on_every_pool(|pool| {
            let mut found = start.clone();
            head_rms_norm(pool, &mut found, row_width, before, heads, &weight, 1e-6);
            for (found, start) in found.chunks(row_width).zip(start.chunks(row_width)) {
                let inside = before..before + heads * width;
                assert_same_bits(&found[..before], &start[..before], "before the heads");
                assert_same_bits(&found[inside.end..], &start[inside.end..], "after the heads");
                for (found, start) in found[inside.clone()].chunks(width).zip(start[inside].chunks(width)) {
                    assert_close(found, &reference::rms_norm(start, &weight, 1e-6), 1e-6, "head");
                }
            }
        });
    }

    #[test]
    fn gates_match_f64(rows in 0_usize..9, n in 1_usize..300, gelu: bool, size in 0.1_f32..30.0, seed: u64) {
        let gate_up: Vec<f32> = values(seed, rows * 2 * n).into_iter().map(|x| x * size).collect();
        let (activation, exact): (_, fn(f64) -> f64) = match gelu {
            true => (GateActivation::GeluTanh, reference::gelu_tanh),
            false => (GateActivation::Silu, reference::silu),
        };
        on_every_pool(|pool| {
            let mut out = vec![f32::NAN; rows * n];
            gated_activation(pool, &gate_up, n, activation, &mut out);
            for (row, out) in gate_up.chunks(2 * n).zip(out.chunks(n)) {
                for i in 0..n {
                    let (gate, up) = (f64::from(row[i]), f64::from(row[n + i]));
                    let expected = exact(gate) * up;
                    let error = (f64::from(out[i]) - expected).abs();
                    assert!(error <= 1e-6 * (1.0 + gate.abs()) * up.abs(), "{activation:?}({gate}) * {up} = {}", out[i]);
                }
            }
        });
    }

    #[test]
    fn rope_and_cache_matches_f64(
        storage in any_storage(), tokens in 0_usize..20, kv_heads in 1_usize..4, group in 1_usize..4,
        half_dim in 0_usize..40, rest in 0_usize..20, block_size in prop::sample::select(vec![32, 96]), seed: u64,
    ) {
        prop_assume!(half_dim + rest > 0);
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim: 2 * half_dim + rest };
        let (d, width) = (shape.head_dim, shape.qkv_width());
        let angles = values(seed, 64 * half_dim);
        let rope = RopeTable {
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
            dim: 2 * half_dim,
        };
        let positions: Vec<u32> = (0..tokens as u32).map(|t| (t * 7) % 64).collect();
        let slots: Vec<u32> = (0..tokens as u32).map(|t| (t * 35 + 1) % 96).collect();
        let start = values(seed ^ 1, tokens * width);
        let untouched = 9.0;
        on_every_pool(|pool| {
            let mut qkv = start.clone();
            let layout = CacheLayout::new(pool.isa(), shape, block_size);
            let mut caches = Caches::new(pool.isa(), storage, layout, 96 / block_size, untouched);
            let [k, v] = caches.slices_mut();
            rope_and_cache(pool, &mut qkv, layout, &positions, &slots, &rope, k, v);
            let [k, v] = caches.tokens();
            for t in 0..tokens {
                let (row, before) = (&qkv[t * width..][..width], &start[t * width..][..width]);
                let angle = positions[t] as usize * half_dim;
                for head in 0..shape.heads + kv_heads {
                    for i in 0..d {
                        let at = head * d + i;
                        let x = |i: usize| f64::from(before[head * d + i]);
                        let turn = |table: &[f32], i: usize| f64::from(table[angle + i]);
                        let expected = if i < half_dim {
                            x(i) * turn(&rope.cos, i) - x(i + half_dim) * turn(&rope.sin, i)
                        } else if i < 2 * half_dim {
                            let j = i - half_dim;
                            x(i) * turn(&rope.cos, j) + x(j) * turn(&rope.sin, j)
                        } else {
                            x(i)
                        };
                        assert!((f64::from(row[at]) - expected).abs() <= 3e-7, "head {head} entry {i}");
                    }
                }
                let slot = slots[t] as usize * shape.cache_width();
                let kv = &row[shape.out_width()..];
                for i in 0..shape.cache_width() {
                    assert_eq!(k[slot + i], storage.round(kv[i]), "k of token {t}, entry {i}");
                    assert_eq!(v[slot + i], storage.round(kv[shape.cache_width() + i]), "v of token {t}, entry {i}");
                }
            }
            for slot in (0..96).filter(|slot| !slots.contains(slot)) {
                let at = slot as usize * shape.cache_width();
                assert!(k[at..at + shape.cache_width()].iter().all(|&x| x == untouched), "slot {slot} was written");
            }
        });
    }

    #[test]
    fn log_softmax_matches_f64(rows in 0_usize..5, width in 1_usize..500, size in 0.1_f32..50.0, seed: u64) {
        let logits: Vec<f32> = values(seed, rows * width).into_iter().map(|x| x * size).collect();
        on_every_pool(|pool| {
            let mut out = vec![f32::NAN; rows * width];
            log_softmax(pool, &logits, width, &mut out);
            for (row, out) in logits.chunks(width).zip(out.chunks(width)) {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum();
                for (x, out) in row.iter().zip(out) {
                    let expected = f64::from(*x) - f64::from(max) - sum.ln();
                    assert!((f64::from(*out) - expected).abs() <= 1e-6 * (1.0 + 2.0 * f64::from(size)), "{out} {expected}");
                }
            }
        });
    }

    #[test]
    fn argmax_finds_the_first_of_the_largest(rows in 0_usize..5, width in 1_usize..200, levels in 1_u32..9, seed: u64) {
        let logits: Vec<f32> = values(seed, rows * width).into_iter().map(|x| (x * levels as f32).floor()).collect();
        on_every_pool(|pool| {
            let mut out = vec![u32::MAX; rows];
            argmax(pool, &logits, width, &mut out);
            for (row, &found) in logits.chunks(width).zip(&out) {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(found as usize, row.iter().position(|&x| x == max).unwrap());
            }
        });
    }
}

/// Rounding to the cache's type is exactly to nearest even, special values included.
#[test]
fn the_cache_rounds_as_the_half_crate_does() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 24 };
    let special =
        [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, 65504.0, 65519.9, 65520.0, 1e-8, 3e-5, 6e-8, 1e-40];
    let mut numbers: Vec<f32> = special.to_vec();
    numbers.extend([f32::from_bits(0x3f80_8000), f32::from_bits(0x3f81_8000), f32::from_bits(0x3f80_8001)]);
    numbers.extend([f32::from_bits(0x3f80_1000), f32::from_bits(0x3f80_3000), f32::MAX, f32::MIN, 1e38, -3e38]);
    numbers.resize(24, 0.1);
    let mut row = vec![0.0; 24];
    row.extend_from_slice(&numbers);
    row.extend_from_slice(&numbers);
    let rope = RopeTable { cos: vec![], sin: vec![], dim: 0 };
    for storage in Storage::ALL {
        on_every_pool(|pool| {
            let layout = CacheLayout::new(pool.isa(), shape, 32);
            let mut caches = Caches::new(pool.isa(), storage, layout, 1, 0.0);
            let [k, v] = caches.slices_mut();
            rope_and_cache(pool, &mut row.clone(), layout, &[0], &[0], &rope, k, v);
            let expected: Vec<f32> = numbers.iter().map(|&x| storage.round(x)).collect();
            for cached in caches.tokens() {
                assert_eq!(bits(&cached[..24]), bits(&expected), "{storage:?} on {pool:?}");
            }
        });
    }
}

#[test]
fn nan_survives_the_cache() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 16 };
    let rope = RopeTable { cos: vec![], sin: vec![], dim: 0 };
    for storage in Storage::ALL {
        on_every_pool(|pool| {
            let layout = CacheLayout::new(pool.isa(), shape, 32);
            let mut caches = Caches::new(pool.isa(), storage, layout, 1, 0.0);
            let [k, v] = caches.slices_mut();
            rope_and_cache(pool, &mut [f32::NAN; 48], layout, &[0], &[0], &rope, k, v);
            for cached in caches.tokens() {
                let (there, others) = cached.split_at(16);
                assert!(there.iter().all(|x| x.is_nan()), "{storage:?} on {pool:?}");
                assert!(others.iter().all(|&x| x == 0.0), "{storage:?} on {pool:?}");
            }
        });
    }
}

#[test]
fn a_position_or_slot_out_of_bounds_is_refused() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 4 };
    let rope = RopeTable { cos: vec![1.0; 4], sin: vec![0.0; 4], dim: 4 };
    on_every_pool(|pool| {
        let layout = CacheLayout::new(pool.isa(), shape, 32);
        for (position, slot, fine) in [(1, 31, true), (2, 0, false), (0, 32, false), (u32::MAX, 0, false)] {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut caches = Caches::new(pool.isa(), Storage::F32, layout, 1, 0.0);
                let [k, v] = caches.slices_mut();
                rope_and_cache(pool, &mut [0.5; 12], layout, &[position], &[slot], &rope, k, v);
            }));
            assert_eq!(outcome.is_ok(), fine, "position {position}, slot {slot}");
        }
    });
}

#[test]
fn rows_have_the_same_bits_alone_and_in_any_company() {
    let (rows, width) = (200, 576);
    let (x, weight) = (values(1, rows * width), values(2, width));
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 72 };
    let angles = values(3, 300 * 36);
    let rope = RopeTable {
        cos: angles.iter().map(|a| a.cos()).collect(),
        sin: angles.iter().map(|a| a.sin()).collect(),
        dim: 72,
    };
    assert_eq!(shape.qkv_width(), width);
    for [one, three] in pools() {
        let all = |pool: &Pool, x: &[f32], first: u32| {
            let rows = x.len() / width;
            let (mut residual, mut norm) = (x.to_vec(), vec![0.0; x.len()]);
            let delta = AddedRows { rows: x, norm: Some(&weight) };
            add_rms_norm(pool, &mut residual, Some(delta), &weight, 1e-5, &mut norm);
            let mut gate = vec![0.0; x.len() / 2];
            gated_activation(pool, x, width / 2, GateActivation::Silu, &mut gate);
            let mut turned = x.to_vec();
            let positions: Vec<u32> = (first..first + rows as u32).collect();
            let layout = CacheLayout::new(pool.isa(), shape, 32);
            let mut caches = Caches::new(pool.isa(), Storage::F32, layout, 10, 0.0);
            let [k, v] = caches.slices_mut();
            rope_and_cache(pool, &mut turned, layout, &positions, &positions, &rope, k, v);
            let mut log = vec![0.0; x.len()];
            log_softmax(pool, x, width, &mut log);
            [norm, gate, turned, log]
        };
        let together = all(three, &x, 0);
        for (r, row) in x.chunks(width).enumerate() {
            for (alone, together) in all(one, row, r as u32).iter().zip(&together) {
                assert_same_bits(alone, &together[r * alone.len()..][..alone.len()], &format!("row {r}"));
            }
        }
    }
}

#[test]
fn gates_of_extreme_values_are_finite_or_what_f64_says() {
    let gates = [-1e30, -1000.0, -104.0, -90.0, -87.5, 0.0, -0.0, 1e-30, 87.5, 90.0, 1000.0, 1e30];
    let mut gate_up = gates.to_vec();
    gate_up.extend([1.0; 12]);
    on_every_pool(|pool| {
        for (activation, exact) in [
            (GateActivation::Silu, reference::silu as fn(f64) -> f64),
            (GateActivation::GeluTanh, reference::gelu_tanh),
        ] {
            let mut out = [f32::NAN; 12];
            gated_activation(pool, &gate_up, 12, activation, &mut out);
            for (gate, out) in gates.iter().zip(out) {
                let expected = exact(f64::from(*gate)) as f32;
                let error = (out - expected).abs();
                assert!(error <= 1e-6 * expected.abs() + 1e-30, "{activation:?}({gate}) is {out}, not {expected}");
            }
        }
        let mut out = [0.0; 2];
        gated_activation(pool, &[f32::NAN, 1.0, 1.0, f32::NAN], 2, GateActivation::Silu, &mut out);
        assert!(out.iter().all(|x| x.is_nan()), "NaN is not hidden: {out:?}");
    });
}

#[test]
fn argmax_passes_over_nan() {
    on_every_pool(|pool| {
        let mut out = [9];
        argmax(pool, &[f32::NAN, -5.0, f32::NAN, -4.0, -6.0], 5, &mut out);
        assert_eq!(out, [3]);
        argmax(pool, &[f32::NAN; 3], 3, &mut out);
        assert_eq!(out, [0], "of nothing but NaN, the first");
        argmax(pool, &[f32::NEG_INFINITY; 3], 3, &mut out);
        assert_eq!(out, [0]);
    });
}

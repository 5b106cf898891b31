//! Packed matrix products.

use flashjob_block_format::BlockFormat;
use flashjob_cpu::{self as kernels, PackedMatrix, Packing, Pool, WeightSlice, matmul};
use half::{bf16, f16};
use proptest::prelude::*;

use super::{Storage, any_storage, assert_same_bits, on_every_pool, pools, reference, values};

/// Packs `weights` (already rounded to `storage`), as several sources of some rows each.
fn pack(pool: &Pool, storage: Storage, weights: &[f32], in_: usize, rows_of_sources: &[usize]) -> PackedMatrix {
    let wide = weights.to_vec();
    let b: Vec<bf16> = weights.iter().map(|&x| bf16::from_f32(x)).collect();
    let h: Vec<f16> = weights.iter().map(|&x| f16::from_f32(x)).collect();
    let mut at = 0;
    let sources: Vec<WeightSlice<'_>> = rows_of_sources
        .iter()
        .map(|rows| {
            let part = at..at + rows * in_;
            at = part.end;
            match storage {
                Storage::F32 => WeightSlice::F32(&wide[part]),
                Storage::Bf16 => WeightSlice::Bf16(&b[part]),
                Storage::F16 => WeightSlice::F16(&h[part]),
            }
        })
        .collect();
    PackedMatrix::pack_rows(pool, &sources, in_)
}

fn rounded(storage: Storage, seed: u64, count: usize) -> Vec<f32> {
    values(seed, count).into_iter().map(|x| storage.round(x)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn matches_f64_within_the_rounding_bound(
        storage in any_storage(),
        rows in 0_usize..40,
        in_ in 1_usize..200,
        sources in prop::collection::vec(0_usize..60, 1..4),
        with_bias: bool,
        seed: u64,
    ) {
        let out: usize = sources.iter().sum();
        let (x, w) = (values(seed, rows * in_), rounded(storage, seed ^ 1, out * in_));
        let bias = with_bias.then(|| values(seed ^ 2, out));
        let expected = reference::matmul(&x, rows, &w, in_, bias.as_deref());
        on_every_pool(|pool| {
            let packed = pack(pool, storage, &w, in_, &sources);
            assert_eq!((packed.out(), packed.in_()), (out, in_));
            let mut y = vec![f32::NAN; rows * out];
            matmul(pool, &x, rows, &packed, bias.as_deref(), &mut y);
            for (i, (&y, &(sum, size))) in y.iter().zip(&expected).enumerate() {
                let bound = (in_ + 2) as f64 * f64::from(f32::EPSILON) * size;
                assert!((f64::from(y) - sum).abs() <= bound, "{pool:?}: entry {i} is {y}, f64 says {sum}");
            }
        });
    }

    #[test]
    fn unpacks_the_rows_that_were_packed(
        storage in any_storage(),
        in_ in 1_usize..70,
        sources in prop::collection::vec(0_usize..50, 1..4),
        seed: u64,
    ) {
        let out: usize = sources.iter().sum();
        let w = rounded(storage, seed, out * in_);
        on_every_pool(|pool| {
            let packed = pack(pool, storage, &w, in_, &sources);
            let mut row = vec![f32::NAN; in_];
            for (o, expected) in w.chunks(in_).enumerate() {
                packed.unpack_row(o, &mut row);
                assert_same_bits(&row, expected, "unpacked row");
            }
        });
    }

    #[test]
    fn rows_may_arrive_in_any_order_from_any_thread(
        in_ in 1_usize..70,
        runs in prop::collection::vec(0_usize..50, 1..6),
        seed: u64,
    ) {
        let out: usize = runs.iter().sum();
        let w = values(seed, out * in_);
        on_every_pool(|pool| {
            let packing = Packing::new(pool, &[(kernels::Storage::F32, out)], in_);
            std::thread::scope(|scope| {
                let mut end = out;
                for rows in runs.iter().rev() {
                    end -= rows;
                    let (first, part) = (end, &w[end * in_..(end + rows) * in_]);
                    let packing = &packing;
                    scope.spawn(move || packing.rows(first, WeightSlice::F32(part)));
                }
            });
            let packed = packing.finish();
            let mut row = vec![f32::NAN; in_];
            for (o, expected) in w.chunks(in_).enumerate() {
                packed.unpack_row(o, &mut row);
                assert_same_bits(&row, expected, "unpacked row");
            }
        });
    }
}

/// Rows and depths on both sides of every block size that the kernels use.
#[test]
fn a_row_has_the_same_bits_alone_and_in_any_company() {
    for (rows, in_, out) in [(2, 576, 70), (17, 130, 33), (150, 1100, 40), (64, 2100, 65), (301, 67, 100)] {
        for storage in Storage::ALL {
            let (x, w) = (values(7, rows * in_), rounded(storage, 8, out * in_));
            let bias = values(9, out);
            for [one, three] in pools() {
                let packed = pack(one, storage, &w, in_, &[out]);
                let mut together = vec![f32::NAN; rows * out];
                matmul(three, &x, rows, &packed, Some(&bias), &mut together);
                let mut again = vec![f32::NAN; rows * out];
                matmul(one, &x, rows, &packed, Some(&bias), &mut again);
                assert_same_bits(&together, &again, "threads");
                let mut first = 0;
                for company in [1, 1, 2, 3, 5, 8, 13, 16, 30, 64, 128] {
                    let last = (first + company).min(rows);
                    let mut some = vec![f32::NAN; (last - first) * out];
                    matmul(one, &x[first * in_..last * in_], last - first, &packed, Some(&bias), &mut some);
                    assert_same_bits(&some, &together[first * out..last * out], &format!("{company} of {rows} rows"));
                    first = last;
                }
            }
        }
    }
}

#[test]
fn sixteen_bit_weights_give_the_bits_of_their_widened_values() {
    let (rows, in_, out) = (40, 300, 100);
    for storage in [Storage::Bf16, Storage::F16] {
        let (x, w) = (values(1, rows * in_), rounded(storage, 2, out * in_));
        on_every_pool(|pool| {
            let mut narrow = vec![0.0; rows * out];
            matmul(pool, &x, rows, &pack(pool, storage, &w, in_, &[out]), None, &mut narrow);
            let mut wide = vec![0.0; rows * out];
            matmul(pool, &x, rows, &pack(pool, Storage::F32, &w, in_, &[out]), None, &mut wide);
            assert_same_bits(&narrow, &wide, "widened");
        });
    }
}

#[test]
fn sixteen_bit_weights_stay_in_sixteen_bits() {
    let pool = &pools()[0][0];
    let w = rounded(Storage::Bf16, 3, 512 * 256);
    assert_eq!(pack(pool, Storage::F32, &w, 256, &[512]).bytes(), 512 * 256 * 4);
    assert_eq!(pack(pool, Storage::Bf16, &w, 256, &[512]).bytes(), 512 * 256 * 2);
    assert_eq!(pack(pool, Storage::F16, &w, 256, &[512]).bytes(), 512 * 256 * 2);
}

#[test]
fn special_values_pass_through() {
    on_every_pool(|pool| {
        let w = [f32::INFINITY, 1.0, f32::NAN, 1.0, 1e-40, 0.0];
        let packed = pack(pool, Storage::F32, &w, 2, &[3]);
        let mut y = [0.0; 3];
        matmul(pool, &[1.0, 2.0], 1, &packed, None, &mut y);
        assert_eq!(y[0], f32::INFINITY);
        assert!(y[1].is_nan());
        assert_eq!(y[2], 1e-40, "subnormal weights are not flushed");
    });
}

#[test]
fn a_product_of_nothing_is_its_bias() {
    on_every_pool(|pool| {
        let packed = PackedMatrix::pack(pool, WeightSlice::F32(&[]), 3, 0);
        let mut y = [f32::NAN; 6];
        matmul(pool, &[], 2, &packed, Some(&[1.0, 2.0, 3.0]), &mut y);
        assert_eq!(y, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        matmul(pool, &[], 2, &packed, None, &mut y);
        assert_eq!(y, [0.0; 6]);
    });
}

#[test]
fn wrong_lengths_are_refused() {
    let pool = &pools()[0][0];
    let packed = PackedMatrix::pack(pool, WeightSlice::F32(&[0.0; 6]), 3, 2);
    let refused = |call: &dyn Fn()| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).expect_err("a wrong length was accepted")
    };
    refused(&|| matmul(pool, &[0.0; 3], 2, &packed, None, &mut [0.0; 6]));
    refused(&|| matmul(pool, &[0.0; 4], 2, &packed, None, &mut [0.0; 5]));
    refused(&|| matmul(pool, &[0.0; 4], 2, &packed, Some(&[0.0; 2]), &mut [0.0; 6]));
    refused(&|| packed.unpack_row(3, &mut [0.0; 2]));
    refused(&|| packed.unpack_row(0, &mut [0.0; 3]));
    refused(&|| drop(PackedMatrix::pack(pool, WeightSlice::F32(&[0.0; 5]), 3, 2)));
    refused(&|| drop(PackedMatrix::pack_rows(pool, &[WeightSlice::F32(&[0.0; 5])], 2)));
    let halves_of_a_block = [(kernels::Storage::Blocks(BlockFormat::Q8_0), 3)];
    refused(&|| drop(Packing::new(pool, &halves_of_a_block, 48)));

    let two = [0.0; 4];
    let of_three = || {
        let packing = Packing::new(pool, &[(kernels::Storage::F32, 3)], 2);
        packing.rows(0, WeightSlice::F32(&two));
        packing
    };
    refused(&|| of_three().rows(1, WeightSlice::F32(&two)));
    refused(&|| of_three().rows(2, WeightSlice::F32(&two)));
    refused(&|| of_three().rows(2, WeightSlice::F32(&[0.0; 3])));
    refused(&|| of_three().rows(2, WeightSlice::F16(&[f16::ZERO; 2])));
    refused(&|| drop(of_three().finish()));
}

//! Products with quantised weights: the bits of those with the numbers that they stand for.

use flashjob_block_format::BlockFormat;
use flashjob_cpu::{PackedMatrix, Packing, Pool, Storage, WeightSlice, matmul};
use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{assert_same_bits, on_every_pool, pools, values};

/// Blocks of random codes with scales of ordinary size, and the numbers that they stand for: `[rows, in_]`.
struct Blocks {
    format: BlockFormat,
    bytes: Vec<u8>,
    numbers: Vec<f32>,
}

impl Blocks {
    fn random(format: BlockFormat, rows: usize, in_: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let count = rows * in_ / format.block_len();
        let mut bytes = vec![0; count * format.block_bytes()];
        random.fill(&mut bytes[..]);
        let halves: &[usize] = match format {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
            BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4_K | BlockFormat::Q5_K => &[0, 2],
            BlockFormat::Q2_K => &[80, 82],
            BlockFormat::Q3_K => &[108],
            BlockFormat::Q6_K => &[208],
        };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in halves {
                let half = f16::from_f32(random.random_range(-0.02..0.02));
                block[at..at + 2].copy_from_slice(&half.to_le_bytes());
            }
        }
        let mut numbers = vec![f32::NAN; rows * in_];
        format.dequantize(&bytes, &mut numbers);
        // The sign of a zero is that of neither way for all formats, and changes no sum.
        numbers.iter_mut().for_each(|number| *number += 0.0);
        Self { format, bytes, numbers }
    }

    fn slice(&self) -> WeightSlice<'_> {
        WeightSlice::Blocks(self.format, &self.bytes)
    }
}

#[test]
fn products_have_the_bits_of_those_with_dequantised_weights() {
    // Rows: of tiles that widen by themselves, of one that does not, of several, and of several passes.
    for format in BlockFormat::ALL {
        for (rows, in_, out) in
            [(1, 256, 70), (3, 2304, 33), (4, 512, 16), (5, 512, 64), (37, 1280, 40), (130, 2560, 65)]
        {
            let weights = Blocks::random(format, out, in_, 11);
            let (x, bias) = (values(7, rows * in_), values(8, out));
            on_every_pool(|pool| {
                let (mut coded, mut wide) = (vec![f32::NAN; rows * out], vec![f32::NAN; rows * out]);
                matmul(pool, &x, rows, &PackedMatrix::pack(pool, weights.slice(), out, in_), Some(&bias), &mut coded);
                let packed = PackedMatrix::pack(pool, WeightSlice::F32(&weights.numbers), out, in_);
                matmul(pool, &x, rows, &packed, Some(&bias), &mut wide);
                assert_same_bits(&coded, &wide, &format!("{format:?}, {rows} rows on {pool:?}"));
            });
        }
    }
}

#[test]
fn rows_of_several_formats_are_one_matrix() {
    let in_ = 512;
    let formats = [BlockFormat::Q4_K, BlockFormat::Q4_K, BlockFormat::Q6_K, BlockFormat::Q8_0];
    let random = |((format, rows), seed)| Blocks::random(format, rows, in_, seed);
    let parts: Vec<Blocks> = formats.into_iter().zip([40, 7, 33, 16]).zip(0..).map(random).collect();
    let plain = values(3, 21 * in_);
    let numbers = [parts.iter().flat_map(|part| part.numbers.clone()).collect(), plain.clone()].concat();
    let out = numbers.len() / in_;
    for rows in [1, 6, 50] {
        let x = values(5, rows * in_);
        on_every_pool(|pool| {
            let sources: Vec<_> = parts.iter().map(Blocks::slice).chain([WeightSlice::F32(&plain)]).collect();
            let mixed = PackedMatrix::pack_rows(pool, &sources, in_);
            assert_eq!((mixed.out(), mixed.in_()), (out, in_));
            let wide = PackedMatrix::pack(pool, WeightSlice::F32(&numbers), out, in_);
            let (mut found, mut expected) = (vec![f32::NAN; rows * out], vec![f32::NAN; rows * out]);
            matmul(pool, &x, rows, &mixed, None, &mut found);
            matmul(pool, &x, rows, &wide, None, &mut expected);
            assert_same_bits(&found, &expected, &format!("{rows} rows on {pool:?}"));
            let mut row = vec![f32::NAN; in_];
            for (index, expected) in numbers.chunks(in_).enumerate() {
                mixed.unpack_row(index, &mut row);
                row.iter_mut().for_each(|number| *number += 0.0);
                assert_same_bits(&row, expected, &format!("row {index}"));
            }
        });
    }
}

/// As the loader brings them: runs of rows of each format, from any thread.
#[test]
fn quantised_rows_arrive_in_runs() {
    let (in_, [upper, lower]) =
        (256, [BlockFormat::Q5_K, BlockFormat::Q6_K].map(|format| Blocks::random(format, 60, 256, 1)));
    let [one, _] = &pools()[0];
    let packing = Packing::new(one, &[(Storage::Blocks(upper.format), 60), (Storage::Blocks(lower.format), 60)], in_);
    for (part, first) in [(&lower, 60), (&upper, 0)] {
        let row_bytes = part.bytes.len() / 60;
        for run in [40..60, 0..13, 13..40] {
            let bytes = &part.bytes[run.start * row_bytes..run.end * row_bytes];
            packing.rows(first + run.start, WeightSlice::Blocks(part.format, bytes));
        }
    }
    let (packed, mut row) = (packing.finish(), vec![f32::NAN; in_]);
    for (index, expected) in upper.numbers.chunks(in_).chain(lower.numbers.chunks(in_)).enumerate() {
        packed.unpack_row(index, &mut row);
        row.iter_mut().for_each(|number| *number += 0.0);
        assert_same_bits(&row, expected, &format!("row {index}"));
    }
}

/// Scales and codes are side by side in memory: a panel takes little more than a file does.
#[test]
fn quantised_weights_take_the_memory_of_their_file() {
    let pool = Pool::new(1);
    for format in BlockFormat::ALL {
        let weights = Blocks::random(format, 64, 1024, 2);
        let packed = PackedMatrix::pack(&pool, weights.slice(), 64, 1024);
        let ratio = packed.bytes() as f64 / weights.bytes.len() as f64;
        assert!((1.0..1.04).contains(&ratio), "{format:?}: {ratio}");
    }
}

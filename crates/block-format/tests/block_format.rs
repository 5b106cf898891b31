//! Blocks of random bytes: whatever they are, a block stands for numbers, and its parts stand for the same.

use flashjob_block_format::{BlockFormat, MOST_SUB_SCALES};
use half::f16;
use proptest::prelude::*;

/// A weight from the parts of its block, as their documentation says.
fn number(format: BlockFormat, block: &[u8], index: usize) -> f32 {
    let parts = format.parts(block);
    let [d, m] = [parts.scale, parts.minimum].map(|bits| f16::from_bits(bits).to_f32());
    let sub = |index: usize| parts.sub_scales[index];
    let (scale, minimum) = match format {
        BlockFormat::Q4_K | BlockFormat::Q5_K => (d * f32::from(sub(index / 32)), m * f32::from(sub(8 + index / 32))),
        BlockFormat::Q2_K => (d * f32::from(sub(index / 16) & 0xf), m * f32::from(sub(index / 16) >> 4)),
        BlockFormat::Q3_K | BlockFormat::Q6_K => (d * f32::from(sub(index / 16).cast_signed()), 0.0),
        _ => (d, m),
    };
    let addend = if format.offset() > 0 { -f32::from(format.offset()) * scale } else { minimum };
    f32::from(parts.codes[index]).mul_add(scale, addend)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_parts_of_a_block_stand_for_its_numbers(bytes in prop::collection::vec(any::<u8>(), 256)) {
        for format in BlockFormat::ALL {
            let block = &bytes[..format.block_bytes()];
            let mut expected = vec![f32::NAN; format.block_len()];
            format.dequantize(block, &mut expected);
            for (index, &expected) in expected.iter().enumerate() {
                let found = number(format, block, index);
                // A product of a large scale and 0 is no number for both.
                let is_same = found == expected || found.is_nan() && !expected.is_finite();
                prop_assert!(is_same || !f16::from_bits(format.parts(block).scale).is_finite()
                    || !f16::from_bits(format.parts(block).minimum).is_finite(),
                    "{format:?} {index}: {found} instead of {expected}");
            }
        }
    }
}

#[test]
fn names_are_those_of_ggml() {
    for format in BlockFormat::ALL {
        assert_eq!(format!("{format:?}").to_lowercase(), format.name());
    }
    let known = (0..64).filter_map(BlockFormat::of_ggml).count();
    assert_eq!(known, BlockFormat::ALL.len());
    assert_eq!(MOST_SUB_SCALES, 16);
}

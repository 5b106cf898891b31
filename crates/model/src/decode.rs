//! Stored bytes become numbers of the wanted format: widened, rounded to nearest even, or dequantised.
//!
//! Works on one contiguous run of blocks and knows nothing of files or shapes.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use super::Dtype;
use super::stored::Encoding;
use flashjob_block_format::BlockFormat;

#[cfg(not(target_endian = "little"))]
compile_error!("checkpoints are little-endian, and so must the machine be");

/// Bytes with the alignment of every number format.
pub(super) struct Bytes {
    // Words rather than bytes: a `Vec<u8>` is aligned to 1, and a cast to wider numbers would fail at random.
    words: Vec<u64>,
    len: usize,
}

impl Bytes {
    /// A buffer of `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(8)], len }
    }

    /// Changes the length to `len` bytes; the first ones keep their values.
    pub fn resize(&mut self, len: usize) {
        self.words.resize(len.div_ceil(8), 0);
        self.len = len;
    }

    pub fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

/// The target of a conversion; numbers of 16 bits are represented by their bits.
pub(super) enum Numbers<'a> {
    F32(&'a mut [f32]),
    Bits16(&'a mut [u16], SixteenBits),
}

/// The formats with 16 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SixteenBits {
    F16,
    Bf16,
}

impl Numbers<'_> {
    pub fn dtype(&self) -> Dtype {
        match self {
            Numbers::F32(_) => Dtype::F32,
            Numbers::Bits16(_, SixteenBits::F16) => Dtype::F16,
            Numbers::Bits16(_, SixteenBits::Bf16) => Dtype::Bf16,
        }
    }

    /// The memory itself, for reading a file directly into it.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Numbers::F32(numbers) => bytemuck::cast_slice_mut(numbers),
            Numbers::Bits16(numbers, _) => bytemuck::cast_slice_mut(numbers),
        }
    }

    /// Position and value of the first NaN or infinity.
    pub fn first_not_finite(&self) -> Option<(usize, f32)> {
        match self {
            Numbers::F32(numbers) => find_not_finite(numbers, |&number| number),
            Numbers::Bits16(numbers, SixteenBits::F16) => {
                find_not_finite(numbers, |&bits| f16::from_bits(bits).to_f32())
            }
            Numbers::Bits16(numbers, SixteenBits::Bf16) => {
                find_not_finite(numbers, |&bits| bf16::from_bits(bits).to_f32())
            }
        }
    }

    /// Stores single-precision numbers, rounded to nearest even where they must lose bits.
    pub fn store(&mut self, from: &[f32]) {
        match self {
            Numbers::F32(to) => to.copy_from_slice(from),
            Numbers::Bits16(to, SixteenBits::F16) => to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(from),
            // Rounding to nearest, ties to even, as in PyTorch: checkpoints that others convert give the same bits.
            Numbers::Bits16(to, SixteenBits::Bf16) => to.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(from),
        }
    }
}

fn find_not_finite<T>(numbers: &[T], value: impl Fn(&T) -> f32) -> Option<(usize, f32)> {
    numbers.iter().map(value).enumerate().find(|(_, number)| !number.is_finite())
}

/// Decodes `bytes`, which hold exactly `to.len()` numbers in whole blocks.
pub(super) fn decode(encoding: Encoding, bytes: &Bytes, to: &mut Numbers<'_>) {
    let bytes = bytes.as_slice();
    match encoding {
        // Equal formats are copied: a conversion could change the bits of a NaN.
        Encoding::Plain(dtype) if dtype == to.dtype() => to.as_bytes_mut().copy_from_slice(bytes),
        Encoding::Plain(Dtype::F32) => to.store(bytemuck::cast_slice(bytes)),
        Encoding::Plain(Dtype::F16) => widen(bytemuck::cast_slice::<u8, u16>(bytes).reinterpret_cast::<f16>(), to),
        Encoding::Plain(Dtype::Bf16) => widen(bytemuck::cast_slice::<u8, u16>(bytes).reinterpret_cast::<bf16>(), to),
        Encoding::Blocks(format) => dequantize(format, bytes, to),
    }
}

fn widen<H>(from: &[H], to: &mut Numbers<'_>)
where
    [H]: HalfFloatSliceExt,
{
    match to {
        Numbers::F32(to) => from.convert_to_f32_slice(to),
        // There is no direct conversion between the two formats of 16 bits: single precision holds both exactly.
        Numbers::Bits16(..) => {
            let mut wide = vec![0.0; from.len()];
            from.convert_to_f32_slice(&mut wide);
            to.store(&wide);
        }
    }
}

/// Numbers that are dequantised at a time before they are rounded: they are still in the L1 cache then.
const ROUNDED_AT_A_TIME: usize = 1024;

fn dequantize(format: BlockFormat, bytes: &[u8], to: &mut Numbers<'_>) {
    match to {
        Numbers::F32(to) => format.dequantize(bytes, to),
        Numbers::Bits16(to, bits) => {
            let mut wide = [0.0; ROUNDED_AT_A_TIME];
            // Block lengths divide the chunk, so no block is cut.
            let bytes = bytes.chunks(ROUNDED_AT_A_TIME / format.block_len() * format.block_bytes());
            for (bytes, to) in bytes.zip(to.chunks_mut(ROUNDED_AT_A_TIME)) {
                let wide = &mut wide[..to.len()];
                format.dequantize(bytes, wide);
                Numbers::Bits16(to, *bits).store(wide);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;

    fn decode_to_f32(encoding: Encoding, bytes: &[u8], count: usize) -> Vec<f32> {
        let mut aligned = Bytes::zeros(bytes.len());
        aligned.as_mut_slice().copy_from_slice(bytes);
        let mut numbers = vec![0.0; count];
        decode(encoding, &aligned, &mut Numbers::F32(&mut numbers));
        numbers
    }

    #[test]
    fn blocks_of_every_type_give_the_numbers_of_llama_cpp() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/quantised.safetensors");
        let fixture = std::fs::read(fixture).unwrap();
        let fixture = SafeTensors::deserialize(&fixture).unwrap();
        for blocks in BlockFormat::ALL {
            let name = format!("{blocks:?}");
            let bytes = fixture.tensor(&format!("{name}.bytes")).unwrap();
            let expected = fixture.tensor(&format!("{name}.numbers")).unwrap();
            let expected = decode_to_f32(Encoding::Plain(Dtype::F32), expected.data(), expected.shape()[0]);
            let decoded = decode_to_f32(Encoding::Blocks(blocks), bytes.data(), expected.len());
            for (index, (decoded, expected)) in decoded.iter().zip(&expected).enumerate() {
                // The order of operations differs, and with it the last bit.
                let error = (decoded - expected).abs();
                assert!(error <= 2.0 * f32::EPSILON * expected.abs().max(1.0), "{name} {index}: {decoded} {expected}");
            }
        }
    }

    /// The two numbers of a format around `exact`, and of them the nearer, the even one if both are as near.
    fn nearest(exact: f32, widen: impl Fn(u16) -> f32, significand_mask: u16) -> f32 {
        let candidates = (0..=u16::MAX).map(|bits| (bits, widen(bits))).filter(|(_, value)| value.is_finite());
        let distance = |value: f32| (f64::from(value) - f64::from(exact)).abs();
        let best = candidates.fold((0, f32::MAX), |best, candidate| {
            let (new, old) = (distance(candidate.1), distance(best.1));
            let even = candidate.0 & significand_mask & 1 == 0;
            if new < old || (new == old && even) { candidate } else { best }
        });
        best.1
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn narrowing_rounds_to_nearest_even(exact in prop_oneof![-60000f32..60000.0, -1e-4f32..1e-4, -2f32..2.0], tie in any::<bool>()) {
            // A tie of bfloat16 has a one and then zeros below its last bit.
            let exact = if tie { f32::from_bits(exact.to_bits() & 0xffff_0000 | 0x8000) } else { exact };
            let mut bytes = Bytes::zeros(4);
            bytes.as_mut_slice().copy_from_slice(&exact.to_le_bytes());
            for (format, widen) in [
                (SixteenBits::F16, (|bits| f16::from_bits(bits).to_f32()) as fn(u16) -> f32),
                (SixteenBits::Bf16, |bits| bf16::from_bits(bits).to_f32()),
            ] {
                let mut narrow = [0u16];
                decode(Encoding::Plain(Dtype::F32), &bytes, &mut Numbers::Bits16(&mut narrow, format));
                prop_assert_eq!(widen(narrow[0]), nearest(exact, widen, 1));
            }
        }
    }
}

//! Stored bytes become numbers of the wanted format: widened, rounded to nearest even, or dequantised.
//!
//! Works on one contiguous run of blocks and knows nothing of files or shapes.

use std::borrow::Cow;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use super::Dtype;
use super::stored::Encoding;

#[cfg(not(target_endian = "little"))]
compile_error!("checkpoints are little-endian, and so must the machine be");

/// Bytes aligned for any number format.
pub(super) struct Bytes {
    words: Vec<u64>,
    len: usize,
}

impl Bytes {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(8)], len }
    }

    pub fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

/// Numbers in the making. Sixteen-bit formats are kept as bits, so that fresh memory costs nothing until touched.
pub(super) enum Numbers<'a> {
    F32(&'a mut [f32]),
    Bits16(&'a mut [u16], SixteenBits),
}

/// The two sixteen-bit formats.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SixteenBits {
    F16,
    Bf16,
}

impl Numbers<'_> {
    pub fn len(&self) -> usize {
        match self {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::Bits16(numbers, _) => numbers.len(),
        }
    }

    pub fn dtype(&self) -> Dtype {
        match self {
            Numbers::F32(_) => Dtype::F32,
            Numbers::Bits16(_, SixteenBits::F16) => Dtype::F16,
            Numbers::Bits16(_, SixteenBits::Bf16) => Dtype::Bf16,
        }
    }

    /// The memory itself, for reading a file straight into it.
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
    fn store(&mut self, from: &[f32]) {
        match self {
            Numbers::F32(to) => to.copy_from_slice(from),
            Numbers::Bits16(to, SixteenBits::F16) => to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(from),
            Numbers::Bits16(to, SixteenBits::Bf16) => to.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(from),
        }
    }
}

fn find_not_finite<T>(numbers: &[T], value: impl Fn(&T) -> f32) -> Option<(usize, f32)> {
    numbers.iter().map(value).enumerate().find(|(_, number)| !number.is_finite())
}

/// Decodes `bytes`, which hold exactly `to.len()` numbers in whole blocks.
///
/// # Errors
/// The quantisation's own complaint; none is known for whole blocks.
pub(super) fn decode(encoding: Encoding, bytes: &Bytes, to: &mut Numbers<'_>) -> Result<(), candle_core::Error> {
    let bytes = bytes.as_slice();
    match encoding {
        Encoding::Plain(dtype) if dtype == to.dtype() => to.as_bytes_mut().copy_from_slice(bytes),
        Encoding::Plain(Dtype::F32) => to.store(bytemuck::cast_slice(bytes)),
        Encoding::Plain(Dtype::F16) => widen(bytemuck::cast_slice::<u8, u16>(bytes).reinterpret_cast::<f16>(), to),
        Encoding::Plain(Dtype::Bf16) => widen(bytemuck::cast_slice::<u8, u16>(bytes).reinterpret_cast::<bf16>(), to),
        Encoding::Blocks(blocks) => to.store(&dequantize(blocks, bytes, to.len())?),
    }
    Ok(())
}

fn widen<H>(from: &[H], to: &mut Numbers<'_>)
where
    [H]: HalfFloatSliceExt,
{
    match to {
        Numbers::F32(to) => from.convert_to_f32_slice(to),
        Numbers::Bits16(..) => {
            let mut wide = vec![0.0; from.len()];
            from.convert_to_f32_slice(&mut wide);
            to.store(&wide);
        }
    }
}

fn dequantize(blocks: GgmlDType, bytes: &[u8], count: usize) -> Result<Vec<f32>, candle_core::Error> {
    match blocks.from_data(Cow::Borrowed(bytes)).dequantize(count)? {
        CpuStorage::F32(numbers) if numbers.len() == count => Ok(numbers),
        _ => candle_core::bail!("dequantising {blocks:?} gave other numbers than asked for"),
    }
}

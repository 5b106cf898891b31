//! Blocks become numbers in single precision.

use half::f16;

use super::{BlockFormat, SUPER_BLOCK};

impl BlockFormat {
    /// Dequantises whole blocks: as many as `numbers` has room for.
    ///
    /// # Panics
    /// If `bytes` and `numbers` are not of as many whole blocks.
    pub fn dequantize(self, bytes: &[u8], numbers: &mut [f32]) {
        match self {
            Self::Q4_0 => each(bytes, numbers, q4_0),
            Self::Q4_1 => each(bytes, numbers, q4_1),
            Self::Q5_0 => each(bytes, numbers, q5_0),
            Self::Q5_1 => each(bytes, numbers, q5_1),
            Self::Q8_0 => each(bytes, numbers, q8_0),
            Self::Q2_K => each(bytes, numbers, q2_k),
            Self::Q3_K => each(bytes, numbers, q3_k),
            Self::Q4_K => each(bytes, numbers, q4_k),
            Self::Q5_K => each(bytes, numbers, q5_k),
            Self::Q6_K => each(bytes, numbers, q6_k),
        }
    }
}

/// Blocks of `BYTES` become `LEN` numbers each.
fn each<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    numbers: &mut [f32],
    dequantize: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    // Array types for blocks let the compiler drop all bounds checks inside of them.
    let (blocks, rest) = bytes.as_chunks();
    let (to, room) = numbers.as_chunks_mut();
    assert!(rest.is_empty() && room.is_empty() && blocks.len() == to.len(), "whole blocks, and room for each");
    blocks.iter().zip(to).for_each(|(block, to)| dequantize(block, to));
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

pub(crate) fn low(byte: u8) -> u8 {
    byte & 0xf
}

pub(crate) fn high(byte: u8) -> u8 {
    byte >> 4
}

/// The lower halves of 16 bytes are the first 16 numbers, the upper ones the others.
fn q4_0(block: &[u8; 18], to: &mut [f32; 32]) {
    let scale = half(block, 0);
    let (first, second) = to.split_at_mut(16);
    for ((&byte, first), second) in block[2..].iter().zip(first).zip(second) {
        // Stored with an offset of 8, so that the nibbles are unsigned.
        *first = (f32::from(low(byte)) - 8.0) * scale;
        *second = (f32::from(high(byte)) - 8.0) * scale;
    }
}

fn q4_1(block: &[u8; 20], to: &mut [f32; 32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let (first, second) = to.split_at_mut(16);
    for ((&byte, first), second) in block[4..].iter().zip(first).zip(second) {
        *first = f32::from(low(byte)) * scale + minimum;
        *second = f32::from(high(byte)) * scale + minimum;
    }
}

/// The numbers of 5 bits in `fifth`, a bit each, and 16 bytes of the lower bits.
fn five_bits(fifth: &[u8], lower: &[u8], to: &mut [f32; 32], number: impl Fn(u8) -> f32) {
    let (first, second) = to.split_at_mut(16);
    for (index, ((&byte, first), second)) in lower.iter().zip(first).zip(second).enumerate() {
        // The fifth bits of all 32 weights are in one little-endian word of 4 bytes.
        let bit = |index: usize| (fifth[index / 8] >> (index % 8) & 1) << 4;
        *first = number(low(byte) | bit(index));
        *second = number(high(byte) | bit(index + 16));
    }
}

fn q5_0(block: &[u8; 22], to: &mut [f32; 32]) {
    let scale = half(block, 0);
    // The offset of 16 makes the 5 bits signed.
    five_bits(&block[2..6], &block[6..], to, |number| (f32::from(number) - 16.0) * scale);
}

fn q5_1(block: &[u8; 24], to: &mut [f32; 32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    five_bits(&block[4..8], &block[8..], to, |number| f32::from(number) * scale + minimum);
}

fn q8_0(block: &[u8; 34], to: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (&byte, to) in block[2..].iter().zip(to) {
        *to = f32::from(byte.cast_signed()) * scale;
    }
}

/// Bytes: 16 of scales (lower half) and minima (upper half), 64 of numbers, scale and minimum of those.
fn q2_k(block: &[u8; 84], to: &mut [f32; SUPER_BLOCK]) {
    // Scales are themselves quantised: 4 bits each, and multiplied by one scale in half precision for the super-block.
    let (scale, minimum) = (half(block, 80), half(block, 82));
    let (scales, bits) = (&block[..16], &block[16..80]);
    for (index, to) in to.chunks_exact_mut(16).enumerate() {
        let (scale, minimum) = (scale * f32::from(low(scales[index])), minimum * f32::from(high(scales[index])));
        let (bytes, shift) = quarters(bits, index);
        for (&byte, to) in bytes.iter().zip(to) {
            *to = scale * f32::from(byte >> shift & 3) - minimum;
        }
    }
}

/// Bytes with the numbers of the `index`th 16 of a block, 2 bits each, and their place in each byte: 32 bytes have 128 numbers, 32
/// of them at each place.
pub(crate) fn quarters(bits: &[u8], index: usize) -> (&[u8], usize) {
    // Bits are interleaved: one byte holds numbers 32 apart, so that a vector unit shifts and masks 32 bytes at once.
    let start = index / 8 * 32 + index % 2 * 16;
    (&bits[start..start + 16], index / 2 % 4 * 2)
}

/// Bytes: 32 of upper bits, 64 of lower ones, 12 of scales, the scale of those.
fn q3_k(block: &[u8; 110], to: &mut [f32; SUPER_BLOCK]) {
    let scale = half(block, 108);
    let (upper, bits, scales) = (&block[..32], &block[32..96], &block[96..108]);
    for (index, to) in to.chunks_exact_mut(16).enumerate() {
        // The lower 4 bits of 16 scales are in 8 bytes, the upper 2 in the last 4.
        let lower = if index < 8 { low(scales[index]) } else { high(scales[index - 8]) };
        let above = scales[8 + index % 4] >> (index / 4 * 2) & 3;
        let scale = scale * (f32::from(lower | above << 4) - 32.0);
        let (bytes, shift) = quarters(bits, index);
        let upper = upper[index % 2 * 16..].iter();
        for ((&byte, &upper), to) in bytes.iter().zip(upper).zip(to) {
            // The third bits of numbers 32 apart are in one byte, as with the others.
            let above = upper >> (index / 2) & 1;
            *to = scale * (f32::from(byte >> shift & 3 | above << 2) - 4.0);
        }
    }
}

/// Scale and minimum of the `index`th 32 numbers, 6 bits each, of 8 pairs in 12 bytes.
pub(crate) fn scale_and_minimum(packed: &[u8], index: usize) -> [u8; 2] {
    match index {
        // The first four pairs have 6 bits of a byte each; the upper 2 bits of those bytes extend the nibbles of the
        // other four.
        0..4 => [packed[index] & 63, packed[index + 4] & 63],
        _ => [low(packed[index + 4]) | packed[index - 4] >> 6 << 4, high(packed[index + 4]) | packed[index] >> 6 << 4],
    }
}

/// Bytes: scale and minimum of scales and minima, 12 of those, 128 of numbers.
fn q4_k(block: &[u8; 144], to: &mut [f32; SUPER_BLOCK]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (index, to) in to.chunks_exact_mut(32).enumerate() {
        let [scales, minima] = scale_and_minimum(&block[4..16], index).map(f32::from);
        let (scale, minimum) = (scale * scales, minimum * minima);
        let bytes = &block[16 + index / 2 * 32..][..32];
        let shift = index % 2 * 4;
        for (&byte, to) in bytes.iter().zip(to) {
            *to = scale * f32::from(byte >> shift & 0xf) - minimum;
        }
    }
}

/// Bytes: as those of Q4_K, with 32 of fifth bits before the 128 of the others.
fn q5_k(block: &[u8; 176], to: &mut [f32; SUPER_BLOCK]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let fifth = &block[16..48];
    for (index, to) in to.chunks_exact_mut(32).enumerate() {
        let [scales, minima] = scale_and_minimum(&block[4..16], index).map(f32::from);
        let (scale, minimum) = (scale * scales, minimum * minima);
        let bytes = &block[48 + index / 2 * 32..][..32];
        let shift = index % 2 * 4;
        for ((&byte, &fifth), to) in bytes.iter().zip(fifth).zip(to) {
            *to = scale * f32::from(byte >> shift & 0xf | (fifth >> index & 1) << 4) - minimum;
        }
    }
}

/// Bytes: 128 of lower halves, 64 of upper quarters, 16 of scales, the scale of those.
fn q6_k(block: &[u8; 210], to: &mut [f32; SUPER_BLOCK]) {
    let scale = half(block, 208);
    let (lower, upper, scales) = (&block[..128], &block[128..192], &block[192..208]);
    for (index, to) in to.chunks_exact_mut(16).enumerate() {
        // Signed scales: Q6_K has no minimum, so that the sign of a block lies in its scale.
        let scale = scale * f32::from(scales[index].cast_signed());
        // 64 bytes have the lower halves of 128 numbers: of the first 64 in their lower ones.
        let start = index / 8 * 64 + index % 4 * 16;
        let (halves, shift) = (&lower[start..start + 16], index / 4 % 2 * 4);
        let (quarters, place) = quarters(upper, index);
        for ((&half, &quarter), to) in halves.iter().zip(quarters).zip(to) {
            *to = scale * (f32::from(half >> shift & 0xf | (quarter >> place & 3) << 4) - 32.0);
        }
    }
}

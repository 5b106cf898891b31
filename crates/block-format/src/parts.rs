//! What a block consists of: codes, and the scales from which a weight follows as `scale · code + addend`.
//!
//! For kernels that keep weights as they are stored. The formula gives the bits of `dequantize`, where the product is not
//! rounded before the sum: it has up to 24 significant bits, and all of them fit.

use super::dequantize::{high, low, quarters, scale_and_minimum};
use super::{BlockFormat, SUPER_BLOCK};

/// Bytes of scales within a block at most.
pub const MOST_SUB_SCALES: usize = 16;

/// A block, taken apart.
///
/// With `d` and `m` the numbers in half precision, a weight's scale is `d`, times the sub-scale of its part of the block where the
/// format has them, and its addend is `-offset · scale` or `m`, times the sub-minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockParts {
    /// A code for each weight, unsigned; those of a shorter block come first.
    pub codes: [u8; SUPER_BLOCK],
    /// Bits of `d`, in half precision.
    pub scale: u16,
    /// Bits of `m`, of formats that have it: the minimum, with a sign such that it is added.
    pub minimum: u16,
    /// Scales of parts of the block, of the k-quants: signed for Q3_K and Q6_K; for Q4_K and Q5_K 8 scales, then 8 minima; for Q2_K
    /// scales in the lower and minima in the upper halves.
    pub sub_scales: [u8; MOST_SUB_SCALES],
}

impl BlockFormat {
    /// Takes `block` apart.
    ///
    /// # Panics
    /// If `block` has not the bytes of one block.
    pub fn parts(self, block: &[u8]) -> BlockParts {
        assert_eq!(block.len(), self.block_bytes(), "a block of {}", self.name());
        let mut parts = BlockParts { codes: [0; SUPER_BLOCK], scale: 0, minimum: 0, sub_scales: [0; MOST_SUB_SCALES] };
        let bits = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        // The sign of a number in half precision.
        let negative = |bits: u16| bits ^ 0x8000;
        let (codes, sub_scales) = (&mut parts.codes, &mut parts.sub_scales);
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => parts.scale = bits(0),
            Self::Q4_1 | Self::Q5_1 => (parts.scale, parts.minimum) = (bits(0), bits(2)),
            Self::Q4_K | Self::Q5_K => (parts.scale, parts.minimum) = (bits(0), negative(bits(2))),
            Self::Q2_K => (parts.scale, parts.minimum) = (bits(80), negative(bits(82))),
            Self::Q3_K => parts.scale = bits(108),
            Self::Q6_K => parts.scale = bits(208),
        }
        match self {
            Self::Q4_0 => nibbles(&block[2..], codes),
            Self::Q4_1 => nibbles(&block[4..], codes),
            Self::Q5_0 => {
                nibbles(&block[6..], codes);
                fifth_bits(&block[2..6], codes);
            }
            Self::Q5_1 => {
                nibbles(&block[8..], codes);
                fifth_bits(&block[4..8], codes);
            }
            // Unsigned with an offset of 128.
            Self::Q8_0 => codes.iter_mut().zip(&block[2..]).for_each(|(code, &byte)| *code = byte ^ 0x80),
            Self::Q2_K => {
                sub_scales.copy_from_slice(&block[..16]);
                for (index, codes) in codes.chunks_exact_mut(16).enumerate() {
                    let (bytes, shift) = quarters(&block[16..80], index);
                    codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte >> shift & 3);
                }
            }
            Self::Q3_K => {
                let scales = &block[96..108];
                for (index, (codes, sub_scale)) in codes.chunks_exact_mut(16).zip(sub_scales).enumerate() {
                    let lower = if index < 8 { low(scales[index]) } else { high(scales[index - 8]) };
                    let above = scales[8 + index % 4] >> (index / 4 * 2) & 3;
                    *sub_scale = (lower | above << 4).wrapping_sub(32);
                    let (bytes, shift) = quarters(&block[32..96], index);
                    let upper = &block[index % 2 * 16..][..16];
                    for ((code, byte), upper) in codes.iter_mut().zip(bytes).zip(upper) {
                        *code = byte >> shift & 3 | (upper >> (index / 2) & 1) << 2;
                    }
                }
            }
            Self::Q4_K => {
                pairs_of_scales(&block[4..16], sub_scales);
                halves_of_32(&block[16..], codes);
            }
            Self::Q5_K => {
                pairs_of_scales(&block[4..16], sub_scales);
                halves_of_32(&block[48..], codes);
                for (index, codes) in codes.chunks_exact_mut(32).enumerate() {
                    codes.iter_mut().zip(&block[16..48]).for_each(|(code, fifth)| *code |= (fifth >> index & 1) << 4);
                }
            }
            Self::Q6_K => {
                sub_scales.copy_from_slice(&block[192..208]);
                for (index, codes) in codes.chunks_exact_mut(16).enumerate() {
                    let lower = &block[index / 8 * 64 + index % 4 * 16..][..16];
                    let shift = index / 4 % 2 * 4;
                    let (upper, place) = quarters(&block[128..192], index);
                    for ((code, lower), upper) in codes.iter_mut().zip(lower).zip(upper) {
                        *code = lower >> shift & 0xf | (upper >> place & 3) << 4;
                    }
                }
            }
        }
        parts
    }

    /// Number that is taken from each code of a format without a minimum; 0 of the others.
    pub const fn offset(self) -> u8 {
        match self {
            Self::Q3_K => 4,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6_K => 32,
            Self::Q8_0 => 128,
            Self::Q4_1 | Self::Q5_1 | Self::Q2_K | Self::Q4_K | Self::Q5_K => 0,
        }
    }
}

/// The lower halves of 16 bytes, then the upper ones.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (index, &byte) in bytes[..16].iter().enumerate() {
        (codes[index], codes[index + 16]) = (low(byte), high(byte));
    }
}

/// Bits of a little-endian word, one for each of 32 codes.
fn fifth_bits(word: &[u8], codes: &mut [u8]) {
    codes[..32].iter_mut().enumerate().for_each(|(index, code)| *code |= (word[index / 8] >> (index % 8) & 1) << 4);
}

/// Codes of 4 bits: the lower halves of 32 bytes, then their upper ones.
fn halves_of_32(bytes: &[u8], codes: &mut [u8]) {
    for (index, codes) in codes.chunks_exact_mut(32).enumerate() {
        let (bytes, shift) = (&bytes[index / 2 * 32..][..32], index % 2 * 4);
        codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte >> shift & 0xf);
    }
}

/// Eight scales of 6 bits, then eight minima, of 12 bytes.
fn pairs_of_scales(packed: &[u8], sub_scales: &mut [u8; MOST_SUB_SCALES]) {
    for index in 0..8 {
        [sub_scales[index], sub_scales[index + 8]] = scale_and_minimum(packed, index);
    }
}

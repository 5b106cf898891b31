//! Block formats of ggml, k-quants among them: a few bits for each weight, and scales of half precision for each block.
//!
//! Layouts are those of `ggml-common.h`, and numbers those of `dequantize_row_*` in `ggml-quants.c`, operation by operation. This
//! crate knows nothing of files, tensors or the format that numbers are wanted in.

mod dequantize;
mod parts;

pub use parts::{BlockParts, MOST_SUB_SCALES};

/// Weights in a super-block of the k-quants, which consists of blocks of 16 or 32 with scales of their own.
pub(crate) const SUPER_BLOCK: usize = 256;

/// A block format of ggml.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum BlockFormat {
    /// 4 bits and one scale for 32 weights.
    Q4_0,
    /// 4 bits, scale and minimum for 32 weights.
    Q4_1,
    /// 5 bits and one scale for 32 weights.
    Q5_0,
    /// 5 bits, scale and minimum for 32 weights.
    Q5_1,
    /// 8 bits and one scale for 32 weights.
    Q8_0,
    /// k-quant: 2 bits; scale and minimum of 4 bits for 16 weights.
    Q2_K,
    /// k-quant: 3 bits; scale of 6 bits for 16 weights.
    Q3_K,
    /// k-quant: 4 bits; scale and minimum of 6 bits for 32 weights.
    Q4_K,
    /// k-quant: 5 bits; scale and minimum of 6 bits for 32 weights.
    Q5_K,
    /// k-quant: 6 bits; scale of 8 bits for 16 weights.
    Q6_K,
}

impl BlockFormat {
    /// The format with this number in `enum ggml_type` of `ggml.h`, where it is one of these.
    pub fn of_ggml(number: u32) -> Option<Self> {
        Some(match number {
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            _ => return None,
        })
    }

    /// All formats, in the order of ggml.
    pub const ALL: [Self; 10] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// The name in ggml, in lower case: `q4_k`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2_K => "q2_k",
            Self::Q3_K => "q3_k",
            Self::Q4_K => "q4_k",
            Self::Q5_K => "q5_k",
            Self::Q6_K => "q6_k",
        }
    }

    /// Number of weights in a block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => SUPER_BLOCK,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }
}

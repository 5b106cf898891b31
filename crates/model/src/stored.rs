//! Location and encoding of tensors in files: the interface between file formats and weights.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Dtype, Error, ReadAt};
use flashjob_block_format::BlockFormat;

/// A file that holds tensors.
pub(super) struct WeightFile {
    pub path: PathBuf,
    pub bytes: Arc<dyn ReadAt>,
}

/// Encoding of numbers in a file, or in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Plain numbers, not quantised.
    Plain(Dtype),
    /// Blocks along a row, quantised in a format of ggml.
    Blocks(BlockFormat),
}

impl Encoding {
    /// Number of weights in the smallest unit that can be decoded.
    pub fn block_len(self) -> usize {
        match self {
            Encoding::Plain(_) => 1,
            Encoding::Blocks(format) => format.block_len(),
        }
    }

    /// The name in results: `bfloat16`, `q4_k`.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Plain(dtype) => dtype.name(),
            Encoding::Blocks(format) => format.name(),
        }
    }

    /// Bytes of that unit.
    pub fn block_bytes(self) -> usize {
        match self {
            Encoding::Plain(dtype) => dtype.size_bytes(),
            Encoding::Blocks(format) => format.block_bytes(),
        }
    }
}

/// The order of rows within a head of q and k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// The decoder's order: first halves of the rotated pairs, then second halves.
    Halves,
    /// Pairs next to each other, in heads of so many rows, as GGUF stores Llama.
    Pairs {
        /// Rows of a head.
        head_dim: usize,
    },
}

/// Location and encoding of a tensor. A vector has one column.
#[derive(Clone)]
pub(super) struct Stored {
    pub file: Arc<WeightFile>,
    /// Name in the file.
    pub name: String,
    pub encoding: Encoding,
    /// Offset of the first row from the start of the file, in bytes.
    pub offset: u64,
    pub rows: usize,
    pub columns: usize,
    pub row_order: RowOrder,
    /// Constant added to every stored value; 1.0 for Gemma's norms, whose checkpoints store `weight - 1`.
    pub norm_offset: f32,
}

impl Stored {
    /// An error about the tensor's numbers.
    pub fn malformed(&self, reason: impl std::fmt::Display) -> Error {
        Error::malformed(&self.file.path, format!("tensor {}: {reason}", self.name))
    }

    /// Bytes of a whole row; formats guarantee that rows consist of whole blocks.
    pub fn row_bytes(&self) -> usize {
        self.columns / self.encoding.block_len() * self.encoding.block_bytes()
    }

    /// Blocks of a row that `columns` touch.
    pub fn blocks_of(&self, columns: &Range<usize>) -> Range<usize> {
        let block_len = self.encoding.block_len();
        columns.start / block_len..columns.end.div_ceil(block_len)
    }

    /// Bytes of those blocks.
    pub fn row_bytes_of(&self, columns: &Range<usize>) -> usize {
        self.blocks_of(columns).len() * self.encoding.block_bytes()
    }

    /// Bytes of the whole tensor.
    pub fn size_bytes(&self) -> u64 {
        self.rows as u64 * self.row_bytes() as u64
    }
}

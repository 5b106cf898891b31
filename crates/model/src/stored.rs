//! Where a tensor lies and how its numbers are written: the meeting point of file formats and weights.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::block_format::BlockFormat;
use super::{Dtype, Error, ReadAt};

/// A file that holds tensors.
pub(super) struct WeightFile {
    pub path: PathBuf,
    pub bytes: Arc<dyn ReadAt>,
}

/// How numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// One by one.
    Plain(Dtype),
    /// In blocks along a row, quantised as ggml does.
    Blocks(BlockFormat),
}

impl Encoding {
    /// Numbers in the smallest unit that can be decoded.
    pub fn block_len(self) -> usize {
        match self {
            Encoding::Plain(_) => 1,
            Encoding::Blocks(format) => format.block_len(),
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
    /// As the decoder wants them: first halves of the rotated pairs, then second halves.
    Halves,
    /// Pairs next to each other, in heads of so many rows, as GGUF stores Llama.
    Pairs {
        /// Rows of a head.
        head_dim: usize,
    },
}

/// A tensor at rest. A vector has one column.
#[derive(Clone)]
pub(super) struct Stored {
    pub file: Arc<WeightFile>,
    /// In the file's own words.
    pub name: String,
    pub encoding: Encoding,
    /// Of the first row, from the start of the file.
    pub offset: u64,
    pub rows: usize,
    pub columns: usize,
    pub row_order: RowOrder,
    /// What is stored is less than what is meant by this: Gemma's norms have 1 added to them.
    pub stored_less_by: f32,
}

impl Stored {
    /// An error about its numbers.
    pub fn malformed(&self, reason: impl std::fmt::Display) -> Error {
        Error::malformed(&self.file.path, format!("tensor {}: {reason}", self.name))
    }

    /// Bytes of a whole row; formats guarantee that rows hold whole blocks.
    pub fn row_bytes(&self) -> usize {
        self.columns / self.encoding.block_len() * self.encoding.block_bytes()
    }

    /// The blocks of a row that `columns` touch.
    pub fn blocks_of(&self, columns: &Range<usize>) -> Range<usize> {
        let block_len = self.encoding.block_len();
        columns.start / block_len..columns.end.div_ceil(block_len)
    }

    /// Bytes of those blocks.
    pub fn row_bytes_of(&self, columns: &Range<usize>) -> usize {
        self.blocks_of(columns).len() * self.encoding.block_bytes()
    }

    /// Bytes of the tensor.
    pub fn size_bytes(&self) -> u64 {
        self.rows as u64 * self.row_bytes() as u64
    }
}

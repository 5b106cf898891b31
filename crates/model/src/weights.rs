//! Tensors of one rank's shard, read by rows and converted on the way.
//!
//! Shapes were checked when the model was opened; here bytes move, in runs of rows that any number of threads may read at
//! a time. Who does that, and what becomes of the numbers, is not known here.

mod rows;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::shard::Window;
use super::stored::{Encoding, RowOrder, Stored};
use super::{DecoderConfig, Dtype, Error, Shard, TensorName};
use rows::Read;

pub use rows::{RowBuffer, RowSlice, Rows};

/// Numbers in a run of rows: one to two megabytes, enough for one request to a disk or bucket, and little enough to be
/// still in a cache for the next step.
const RUN_NUMBERS: usize = 512 << 10;

/// Validation of the numbers that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// No validation of values.
    Trust,
    /// No number may be NaN or infinite.
    Finite,
}

/// Format of matrices in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightsFormat {
    /// Format of matrices that are plain numbers.
    pub dtype: Dtype,
    /// Quantised ones stay in their blocks; otherwise they are dequantised to `dtype`.
    pub keeps_blocks: bool,
}

/// The weights of a model: locations of all tensors, with verified shapes.
pub struct Weights {
    path: PathBuf,
    config: DecoderConfig,
    stored: HashMap<TensorName, Stored>,
}

impl Weights {
    /// Finds the location of each tensor of `config` through `find`, which checks its shape. `unexpected` are the names
    /// of tensors that the configuration does not use.
    pub(super) fn new(
        path: &Path,
        config: &DecoderConfig,
        find: impl Fn(TensorName) -> Result<Stored, String>,
        unexpected: impl Iterator<Item = String>,
    ) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let mut stored = HashMap::new();
        for tensor in config.tensors() {
            match find(tensor) {
                Ok(place) => drop(stored.insert(tensor, place)),
                Err(problem) => problems.push(problem),
            }
        }
        // A tensor that the architecture does not have changes results if it is ignored: a bias, say, or a norm.
        problems.extend(unexpected.map(|name| format!("{name} is unexpected")));
        if problems.is_empty() {
            Ok(Self { path: path.into(), config: config.clone(), stored })
        } else {
            Err(Error::Tensors { path: path.into(), problems })
        }
    }

    /// All tensors in the order of a forward pass.
    pub fn tensors(&self) -> impl Iterator<Item = TensorName> + use<> {
        self.config.tensors()
    }

    /// Bytes of all tensors as they are stored.
    pub fn total_bytes(&self) -> u64 {
        self.stored.values().map(Stored::size_bytes).sum()
    }

    /// Rows and columns of the part of `tensor` that `shard` holds; a vector has one column.
    pub fn shape(&self, tensor: TensorName, shard: Shard) -> Result<[usize; 2], Error> {
        let window = Window::new(&self.config, tensor, shard)?;
        Ok([window.rows.len(), window.columns.len()])
    }

    /// Bytes that are read from files for the part of `tensor` that `shard` holds.
    pub fn stored_bytes(&self, tensor: TensorName, shard: Shard) -> Result<u64, Error> {
        let window = Window::new(&self.config, tensor, shard)?;
        Ok(window.rows.len() as u64 * self.stored(tensor)?.row_bytes_of(&window.columns) as u64)
    }

    /// The format of most weights; float16 for quantised ones.
    pub(super) fn prevailing_dtype(&self) -> Dtype {
        let mut bytes = [(Dtype::F32, 0), (Dtype::F16, 0), (Dtype::Bf16, 0)];
        for stored in self.stored.values() {
            let dtype = match stored.encoding {
                Encoding::Plain(dtype) => dtype,
                // Quantised weights count as float16, the format of their scales.
                Encoding::Blocks(_) => Dtype::F16,
            };
            bytes.iter_mut().filter(|(candidate, _)| *candidate == dtype).for_each(|(_, sum)| {
                *sum += stored.rows as u64 * stored.columns as u64;
            });
        }
        bytes.into_iter().max_by_key(|(_, sum)| *sum).map_or(Dtype::F32, |(dtype, _)| dtype)
    }

    /// The best plain format for keeping matrices, for arithmetic in `dtype`. If all files have one format of 16 bits and
    /// arithmetic is in single precision, it is the files' own: widened on use, the numbers are the same, in half the
    /// memory.
    pub fn kept_as(&self, dtype: Dtype) -> Dtype {
        let mut found = self.stored.iter().filter(|(tensor, _)| self.config.shape(**tensor).len() == 2);
        let first = found.next().map(|(_, stored)| stored.encoding);
        match first {
            Some(Encoding::Plain(narrow))
                if dtype == Dtype::F32 && found.all(|(_, stored)| stored.encoding == Encoding::Plain(narrow)) =>
            {
                narrow
            }
            _ => dtype,
        }
    }

    /// Encoding in memory of the part of the matrix `tensor` that `shard` holds.
    pub fn kept(&self, tensor: TensorName, shard: Shard, format: WeightsFormat) -> Result<Encoding, Error> {
        let stored = self.stored(tensor)?;
        let columns = Window::new(&self.config, tensor, shard)?.columns;
        Ok(match stored.encoding {
            // A rank's part may begin within a block.
            Encoding::Blocks(blocks)
                if format.keeps_blocks && [columns.start, columns.end].map(|at| at % blocks.block_len()) == [0; 2] =>
            {
                Encoding::Blocks(blocks)
            }
            _ => Encoding::Plain(format.dtype),
        })
    }

    /// Encodings of all matrices in memory and the weights in each, those of most weights first. Ranks may have to keep some of them
    /// otherwise.
    pub fn kept_by_encoding(&self, format: WeightsFormat) -> Vec<(Encoding, u64)> {
        let mut found: Vec<(Encoding, u64)> = Vec::new();
        for tensor in self.tensors().filter(|tensor| self.config.shape(*tensor).len() == 2) {
            let Ok(encoding) = self.kept(tensor, Shard::WHOLE, format) else { continue };
            let weights = self.config.shape(tensor).iter().product::<usize>() as u64;
            match found.iter_mut().find(|(other, _)| *other == encoding) {
                Some((_, sum)) => *sum += weights,
                None => found.push((encoding, weights)),
            }
        }
        found.sort_by_key(|(_, weights)| std::cmp::Reverse(*weights));
        found
    }

    /// Reads the part of `tensor` that `shard` holds, as `dtype` on the CPU: `[out, in]` for matrices, `[n]` for
    /// vectors.
    pub fn read(
        &self,
        tensor: TensorName,
        shard: Shard,
        dtype: Dtype,
        validation: Validation,
    ) -> Result<Tensor, Error> {
        let stored = self.stored(tensor)?;
        let window = Window::new(&self.config, tensor, shard)?;
        let (rows, columns) = (window.rows.len(), window.columns.len());
        let shape = if self.config.shape(tensor).len() == 1 { vec![rows] } else { vec![rows, columns] };
        let mut buffer = RowBuffer::default();
        let read = Read { stored, window, encoding: Encoding::Plain(dtype), validation };
        read.rows(0..rows, &mut buffer)?.to_tensor(shape).map_err(|error| stored.malformed(error))
    }

    /// Runs of whole rows of the part of `tensor` that `shard` holds, in order: good ranges for [`Self::read_rows`].
    pub fn runs(&self, tensor: TensorName, shard: Shard) -> Result<impl Iterator<Item = Range<usize>> + use<>, Error> {
        let window = Window::new(&self.config, tensor, shard)?;
        let rows = window.rows.len();
        // A head is not split if its rows must be reordered.
        let unit = match self.stored(tensor)?.row_order {
            RowOrder::Halves => 1,
            RowOrder::Pairs { head_dim } => head_dim,
        };
        let each = unit * (RUN_NUMBERS / (unit * window.columns.len())).max(1);
        Ok((0..rows).step_by(each).map(move |first| first..(first + each).min(rows)))
    }

    /// Announces to the file of `tensor` that the part that `shard` holds will be read, after all parts announced
    /// before.
    pub fn will_read(&self, tensor: TensorName, shard: Shard) -> Result<(), Error> {
        let (stored, rows) = (self.stored(tensor)?, Window::new(&self.config, tensor, shard)?.rows);
        let at = |row: usize| stored.offset + row as u64 * stored.row_bytes() as u64;
        stored.file.bytes.will_read(at(rows.start)..at(rows.end));
        Ok(())
    }

    /// `rows` of the part of `tensor` that `shard` holds, in an encoding that [`Self::kept`] has, and the number of bytes read
    /// from files. They overwrite `buffer`, unless they lie in memory exactly as requested. Any number of threads may read
    /// at a time.
    pub fn read_rows<'a>(
        &'a self,
        tensor: TensorName,
        shard: Shard,
        rows: Range<usize>,
        encoding: Encoding,
        validation: Validation,
        buffer: &'a mut RowBuffer,
    ) -> Result<(Rows<'a>, u64), Error> {
        let stored = self.stored(tensor)?;
        let window = Window::new(&self.config, tensor, shard)?;
        let bytes = rows.len() as u64 * stored.row_bytes_of(&window.columns) as u64;
        let rows = Read { stored, window, encoding, validation }.rows(rows, buffer)?;
        Ok((rows, bytes))
    }

    fn stored(&self, tensor: TensorName) -> Result<&Stored, Error> {
        // Tied embeddings (Press and Wolf, 2017): the head is not stored.
        let tensor = if tensor == TensorName::Head && self.config.tied_head { TensorName::Embedding } else { tensor };
        self.stored.get(&tensor).ok_or_else(|| Error::Tensors {
            path: self.path.clone(),
            problems: vec![format!("this model has no {tensor:?}")],
        })
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({}, {} tensors)", self.path.display(), self.stored.len())
    }
}

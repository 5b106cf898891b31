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

/// Numbers of a run of rows: a megabyte or two, enough for a disk or a bucket to be asked for at a time, and little
/// enough to be still in a cache when they are looked at again.
const RUN_NUMBERS: usize = 512 << 10;

/// What is made sure of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// Nothing.
    Trust,
    /// None of them is NaN or infinite.
    Finite,
}

/// The weights of a model: places of all its tensors, all of them known to have the right shapes.
pub struct Weights {
    path: PathBuf,
    config: DecoderConfig,
    stored: HashMap<TensorName, Stored>,
}

impl Weights {
    /// Finds a place for each tensor of `config` through `find`, which checks its shape. `unexpected` are the names of
    /// tensors that the configuration has no use for.
    ///
    /// # Errors
    /// [`Error::Tensors`] with everything that is missing, misshapen or unexpected.
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
        problems.extend(unexpected.map(|name| format!("{name} is unexpected")));
        if problems.is_empty() {
            Ok(Self { path: path.into(), config: config.clone(), stored })
        } else {
            Err(Error::Tensors { path: path.into(), problems })
        }
    }

    /// Every tensor there is, in the order of a forward pass.
    pub fn tensors(&self) -> impl Iterator<Item = TensorName> + use<> {
        self.config.tensors()
    }

    /// Bytes of all tensors as they are stored.
    pub fn total_bytes(&self) -> u64 {
        self.stored.values().map(Stored::size_bytes).sum()
    }

    /// Rows and columns of what `shard` holds of `tensor`; a vector has one column.
    ///
    /// # Errors
    /// [`Error::Shard`].
    pub fn shape(&self, tensor: TensorName, shard: Shard) -> Result<[usize; 2], Error> {
        let window = Window::new(&self.config, tensor, shard)?;
        Ok([window.rows.len(), window.columns.len()])
    }

    /// Bytes that reading `tensor` for `shard` takes from the files.
    ///
    /// # Errors
    /// [`Error::Shard`].
    pub fn stored_bytes(&self, tensor: TensorName, shard: Shard) -> Result<u64, Error> {
        let window = Window::new(&self.config, tensor, shard)?;
        Ok(window.rows.len() as u64 * self.stored(tensor)?.row_bytes_of(&window.columns) as u64)
    }

    /// The format in which most of the weights are stored; float16 for most that are quantised.
    pub(super) fn prevailing_dtype(&self) -> Dtype {
        let mut bytes = [(Dtype::F32, 0), (Dtype::F16, 0), (Dtype::Bf16, 0)];
        for stored in self.stored.values() {
            let dtype = match stored.encoding {
                Encoding::Plain(dtype) => dtype,
                Encoding::Blocks(_) => Dtype::F16,
            };
            bytes.iter_mut().filter(|(candidate, _)| *candidate == dtype).for_each(|(_, sum)| {
                *sum += stored.rows as u64 * stored.columns as u64;
            });
        }
        bytes.into_iter().max_by_key(|(_, sum)| *sum).map_or(Dtype::F32, |(dtype, _)| dtype)
    }

    /// The format in which matrices are best kept for arithmetic in `dtype`. That is the files' own where all of them are
    /// in one format of 16 bits and arithmetic is in single precision: widened when used, they are the very same numbers,
    /// in half the memory.
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

    /// Reads what `shard` holds of `tensor`, as `dtype` on the CPU: `[out, in]` for matrices, `[n]` for vectors.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Shard`], and with [`Validation::Finite`] [`Error::NotFinite`].
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
        let mut buffer = RowBuffer::new(dtype);
        let read = Read { stored, window, validation };
        read.rows(0..rows, &mut buffer)?.to_tensor(shape).map_err(|error| stored.malformed(error))
    }

    /// What `shard` holds of `tensor`, in runs of whole rows, from first to last: what [`Self::read_rows`] is best asked for.
    ///
    /// # Errors
    /// [`Error::Shard`].
    pub fn runs(&self, tensor: TensorName, shard: Shard) -> Result<impl Iterator<Item = Range<usize>> + use<>, Error> {
        let window = Window::new(&self.config, tensor, shard)?;
        let rows = window.rows.len();
        // Heads stay whole where their rows must change places.
        let unit = match self.stored(tensor)?.row_order {
            RowOrder::Halves => 1,
            RowOrder::Pairs { head_dim } => head_dim,
        };
        let each = unit * (RUN_NUMBERS / (unit * window.columns.len())).max(1);
        Ok((0..rows).step_by(each).map(move |first| first..(first + each).min(rows)))
    }

    /// Tells the place where `tensor` lies that what `shard` holds of it will be read, after all that was told before.
    ///
    /// # Errors
    /// [`Error::Shard`].
    pub fn will_read(&self, tensor: TensorName, shard: Shard) -> Result<(), Error> {
        let (stored, rows) = (self.stored(tensor)?, Window::new(&self.config, tensor, shard)?.rows);
        let at = |row: usize| stored.offset + row as u64 * stored.row_bytes() as u64;
        stored.file.bytes.will_read(at(rows.start)..at(rows.end));
        Ok(())
    }

    /// `rows` of what `shard` holds of `tensor`, in the format of `buffer`, and the bytes that this took from the files.
    /// They overwrite `buffer`, unless they lie in memory just as they are wanted. Any number of threads may read at a time.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_rows<'a>(
        &'a self,
        tensor: TensorName,
        shard: Shard,
        rows: Range<usize>,
        validation: Validation,
        buffer: &'a mut RowBuffer,
    ) -> Result<(Rows<'a>, u64), Error> {
        let stored = self.stored(tensor)?;
        let window = Window::new(&self.config, tensor, shard)?;
        let bytes = rows.len() as u64 * stored.row_bytes_of(&window.columns) as u64;
        let rows = Read { stored, window, validation }.rows(rows, buffer)?;
        Ok((rows, bytes))
    }

    fn stored(&self, tensor: TensorName) -> Result<&Stored, Error> {
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

//! Tensors of one rank's shard, read by range and converted on the way.
//!
//! Shapes were checked when the model was opened; here bytes move. Large tensors are read by several threads.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use tokio_util::sync::CancellationToken;

use super::decode::{Bytes, Numbers, SixteenBits, decode};
use super::shard::Window;
use super::stored::{Encoding, RowOrder, Stored};
use super::{DecoderConfig, Dtype, Error, Shard, TensorName};

/// Numbers decoded at a time by one thread: a few megabytes, to stay in cache and keep buffers small.
const CHUNK_NUMBERS: usize = 1 << 20;

/// More threads than this do not make one tensor arrive sooner from a local disk or one bucket.
const MOST_THREADS: usize = 8;

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

    /// Bytes that reading `tensor` for `shard` takes from the files.
    ///
    /// # Errors
    /// [`Error::Shard`].
    pub fn stored_bytes(&self, tensor: TensorName, shard: Shard) -> Result<u64, Error> {
        let stored = self.stored(tensor)?;
        let window = Window::new(&self.config, tensor, shard)?;
        let blocks = whole_blocks(&window.columns, stored.encoding.block_len());
        Ok(window.rows.len() as u64 * (blocks.len() * stored.encoding.block_bytes()) as u64)
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
    /// Any number of threads may read at a time.
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
        self.read_unless_cancelled(tensor, shard, dtype, validation, &CancellationToken::new())
    }

    /// As [`Self::read`], until it is told to stop: within a few megabytes.
    ///
    /// # Errors
    /// Also [`Error::Cancelled`].
    pub fn read_unless_cancelled(
        &self,
        tensor: TensorName,
        shard: Shard,
        dtype: Dtype,
        validation: Validation,
        cancel: &CancellationToken,
    ) -> Result<Tensor, Error> {
        let stored = self.stored(tensor)?;
        let window = Window::new(&self.config, tensor, shard)?;
        let (rows, columns) = (window.rows.len(), window.columns.len());
        let shape = if self.config.shape(tensor).len() == 1 { vec![rows] } else { vec![rows, columns] };
        if stored.stored_less_by != 0.0 && dtype != Dtype::F32 {
            let wide = self.read_unless_cancelled(tensor, shard, Dtype::F32, validation, cancel)?;
            return wide.to_dtype(dtype.into()).map_err(|error| stored.malformed(error));
        }
        let read = Read { stored, window, validation, cancel };
        let count = rows * columns;
        let made = match dtype {
            Dtype::F32 => {
                let mut numbers = vec![0f32; count];
                read.fill(Numbers::F32(&mut numbers))?;
                numbers.iter_mut().for_each(|number| *number += stored.stored_less_by);
                Tensor::from_vec(numbers, shape, &Device::Cpu)
            }
            Dtype::F16 => {
                let mut bits = vec![0u16; count];
                read.fill(Numbers::Bits16(&mut bits, SixteenBits::F16))?;
                Tensor::from_vec(bits.reinterpret_into::<f16>(), shape, &Device::Cpu)
            }
            Dtype::Bf16 => {
                let mut bits = vec![0u16; count];
                read.fill(Numbers::Bits16(&mut bits, SixteenBits::Bf16))?;
                Tensor::from_vec(bits.reinterpret_into::<bf16>(), shape, &Device::Cpu)
            }
        };
        made.map_err(|error| stored.malformed(error))
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

/// The blocks that `columns` touch.
fn whole_blocks(columns: &Range<usize>, block_len: usize) -> Range<usize> {
    columns.start / block_len..columns.end.div_ceil(block_len)
}

/// One tensor on its way.
struct Read<'a> {
    stored: &'a Stored,
    window: Window,
    validation: Validation,
    cancel: &'a CancellationToken,
}

/// Some rows of the destination, the first of them at `row` of the window.
struct Chunk<'a> {
    row: usize,
    numbers: Numbers<'a>,
}

impl Read<'_> {
    fn fill(&self, numbers: Numbers<'_>) -> Result<(), Error> {
        let chunks = self.chunks(numbers);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS).min(chunks.len());
        if threads <= 1 {
            return chunks.into_iter().try_for_each(|chunk| self.fill_chunk(chunk));
        }
        let waiting = Mutex::new(chunks.into_iter());
        let failed = AtomicBool::new(false);
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let Some(chunk) = waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next() else { break };
                self.fill_chunk(chunk).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mine = work();
            let panicked = || Err(Error::malformed(&self.stored.file.path, "a reading thread panicked"));
            others.into_iter().map(|other| other.join().unwrap_or_else(|_| panicked())).fold(mine, Result::and)
        })
    }

    /// Cuts the destination at rows; heads stay whole where their rows must change places.
    fn chunks<'n>(&self, numbers: Numbers<'n>) -> Vec<Chunk<'n>> {
        let columns = self.window.columns.len();
        let unit_rows = match self.stored.row_order {
            RowOrder::Halves => 1,
            RowOrder::Pairs { head_dim } => head_dim,
        };
        let units = (CHUNK_NUMBERS / (unit_rows * columns)).max(1);
        let (rows, len) = (units * unit_rows, units * unit_rows * columns);
        let chunk = |(index, numbers)| Chunk { row: index * rows, numbers };
        match numbers {
            Numbers::F32(numbers) => numbers.chunks_mut(len).map(Numbers::F32).enumerate().map(chunk).collect(),
            Numbers::Bits16(numbers, format) => {
                let parts = numbers.chunks_mut(len).map(|part| Numbers::Bits16(part, format));
                parts.enumerate().map(chunk).collect()
            }
        }
    }

    fn fill_chunk(&self, mut chunk: Chunk<'_>) -> Result<(), Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let columns = &self.window.columns;
        let first_row = self.window.rows.start + chunk.row;
        let rows = chunk.numbers.len() / columns.len();
        let whole_rows = columns.len() == self.stored.columns;
        if whole_rows && self.stored.encoding == Encoding::Plain(chunk.numbers.dtype()) {
            self.read_bytes(chunk.numbers.as_bytes_mut(), first_row, 0)?;
        } else if whole_rows {
            let mut bytes = Bytes::zeros(rows * self.stored.row_bytes());
            self.read_bytes(bytes.as_mut_slice(), first_row, 0)?;
            self.decode(&bytes, &mut chunk.numbers)?;
        } else {
            self.fill_strided(&mut chunk.numbers, first_row)?;
        }
        if let RowOrder::Pairs { head_dim } = self.stored.row_order {
            let head_numbers = head_dim * columns.len();
            match &mut chunk.numbers {
                Numbers::F32(numbers) => {
                    numbers.chunks_mut(head_numbers).for_each(|head| pairs_to_halves(head, columns.len()))
                }
                Numbers::Bits16(numbers, _) => {
                    numbers.chunks_mut(head_numbers).for_each(|head| pairs_to_halves(head, columns.len()))
                }
            }
        }
        match self.validation {
            Validation::Trust => Ok(()),
            Validation::Finite => self.check_finite(&chunk),
        }
    }

    /// Part of each row: the bytes of the blocks that it touches, then the numbers wanted of them.
    fn fill_strided(&self, numbers: &mut Numbers<'_>, first_row: usize) -> Result<(), Error> {
        let columns = &self.window.columns;
        let (block_len, block_bytes) = (self.stored.encoding.block_len(), self.stored.encoding.block_bytes());
        let blocks = whole_blocks(columns, block_len);
        let rows = numbers.len() / columns.len();
        let mut bytes = Bytes::zeros(rows * blocks.len() * block_bytes);
        for (row, bytes) in bytes.as_mut_slice().chunks_mut(blocks.len() * block_bytes).enumerate() {
            self.read_bytes(bytes, first_row + row, blocks.start * block_bytes)?;
        }
        let skip = columns.start - blocks.start * block_len;
        let width = blocks.len() * block_len;
        if skip == 0 && width == columns.len() {
            return self.decode(&bytes, numbers);
        }
        fn cut<T: Copy>(wide: &[T], width: usize, skip: usize, columns: usize, to: &mut [T]) {
            for (row, to) in wide.chunks(width).zip(to.chunks_mut(columns)) {
                to.copy_from_slice(&row[skip..skip + columns]);
            }
        }
        match numbers {
            Numbers::F32(to) => {
                let mut wide = vec![0f32; rows * width];
                self.decode(&bytes, &mut Numbers::F32(&mut wide))?;
                cut(&wide, width, skip, columns.len(), to);
            }
            Numbers::Bits16(to, format) => {
                let mut wide = vec![0u16; rows * width];
                self.decode(&bytes, &mut Numbers::Bits16(&mut wide, *format))?;
                cut(&wide, width, skip, columns.len(), to);
            }
        }
        Ok(())
    }

    fn read_bytes(&self, to: &mut [u8], row: usize, byte_in_row: usize) -> Result<(), Error> {
        let offset = self.stored.offset + row as u64 * self.stored.row_bytes() as u64 + byte_in_row as u64;
        let file = &self.stored.file;
        file.bytes
            .read_exact_at(to, offset)
            .map_err(|source| Error::read(&file.path, format!("tensor {}", self.stored.name), source))
    }

    fn decode(&self, bytes: &Bytes, to: &mut Numbers<'_>) -> Result<(), Error> {
        decode(self.stored.encoding, bytes, to).map_err(|error| self.stored.malformed(error))
    }

    fn check_finite(&self, chunk: &Chunk<'_>) -> Result<(), Error> {
        let Some((position, value)) = chunk.numbers.first_not_finite() else { return Ok(()) };
        let columns = &self.window.columns;
        let row = self.window.rows.start + chunk.row + position / columns.len();
        let index =
            if self.stored.columns == 1 { vec![row] } else { vec![row, columns.start + position % columns.len()] };
        let narrowed = chunk.numbers.dtype() == Dtype::F16 && self.stored.encoding != Encoding::Plain(Dtype::F16);
        let hint = if value.is_infinite() && narrowed {
            "it may only be too large for float16: try dtype bfloat16 or float32"
        } else {
            "get the file again, or ask its publisher"
        };
        Err(Error::NotFinite {
            path: self.stored.file.path.clone(),
            tensor: self.stored.name.clone(),
            index,
            value,
            hint: hint.into(),
        })
    }
}

/// Rows 2i and 2i + 1 of a head become rows i and i + half of it.
fn pairs_to_halves<T: Copy>(head: &mut [T], columns: usize) {
    let pairs = head.to_vec();
    let half = head.len() / columns / 2;
    for (row, numbers) in pairs.chunks(columns).enumerate() {
        let to = (row / 2 + (row % 2) * half) * columns;
        head[to..to + columns].copy_from_slice(numbers);
    }
}

//! Reading of rows of one tensor from a file into memory.
//!
//! Rows are borrowed if possible, else read, decoded, cut to the rank's part of each row, put into the decoder's order, and
//! validated on request.

use std::ops::Range;

use candle_core::{Device, Tensor};
use flashjob_block_format::BlockFormat;
use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};

use crate::decode::{Bytes, Numbers, SixteenBits, decode};
use crate::read_at::Lent;
use crate::shard::Window;
use crate::stored::{Encoding, RowOrder, Stored};
use crate::{Dtype, Error};

use super::Validation;

/// Rows in sequence, by number format.
#[derive(Clone, Copy, Debug)]
pub enum RowSlice<'a> {
    /// Numbers in single precision.
    F32(&'a [f32]),
    /// Numbers in half precision.
    F16(&'a [f16]),
    /// Numbers in bfloat16.
    Bf16(&'a [bf16]),
    /// Quantised weights, in whole blocks.
    Blocks(BlockFormat, &'a [u8]),
}

impl<'a> RowSlice<'a> {
    /// `None` if `bytes` lack the alignment or length for `encoding`.
    fn of(bytes: &'a [u8], encoding: Encoding) -> Option<Self> {
        let bits = || bytemuck::try_cast_slice::<u8, u16>(bytes).ok();
        match encoding {
            Encoding::Plain(Dtype::F32) => Some(RowSlice::F32(bytemuck::try_cast_slice(bytes).ok()?)),
            Encoding::Plain(Dtype::F16) => Some(RowSlice::F16(bits()?.reinterpret_cast())),
            Encoding::Plain(Dtype::Bf16) => Some(RowSlice::Bf16(bits()?.reinterpret_cast())),
            Encoding::Blocks(format) => Some(RowSlice::Blocks(format, bytes)),
        }
    }
}

/// Rows that were read: borrowed from memory, or in a [`RowBuffer`].
pub struct Rows<'a> {
    bytes: Lent<'a>,
    encoding: Encoding,
}

impl<'a> Rows<'a> {
    fn new(bytes: Lent<'a>, encoding: Encoding) -> Option<Self> {
        // Mapped files may put a tensor at an odd offset, where numbers cannot be borrowed; the caller then copies.
        RowSlice::of(&bytes, encoding).is_some().then_some(Self { bytes, encoding })
    }

    /// The rows as numbers.
    pub fn numbers(&self) -> RowSlice<'_> {
        RowSlice::of(&self.bytes, self.encoding).expect("rows that lie as numbers must")
    }

    /// A copy as a tensor on the CPU.
    pub(super) fn to_tensor(&self, shape: Vec<usize>) -> candle_core::Result<Tensor> {
        match self.numbers() {
            RowSlice::F32(numbers) => Tensor::from_slice(numbers, shape, &Device::Cpu),
            RowSlice::F16(numbers) => Tensor::from_slice(numbers, shape, &Device::Cpu),
            RowSlice::Bf16(numbers) => Tensor::from_slice(numbers, shape, &Device::Cpu),
            RowSlice::Blocks(..) => Err(candle_core::Error::Msg("a tensor has no blocks".to_owned())),
        }
    }
}

/// A reusable buffer for rows.
pub struct RowBuffer(Bytes);

impl Default for RowBuffer {
    fn default() -> Self {
        Self(Bytes::zeros(0))
    }
}

impl RowBuffer {
    fn rows(&self, encoding: Encoding) -> Rows<'_> {
        Rows { bytes: Box::new(self.0.as_slice()), encoding }
    }

    /// Space for so many bytes, with arbitrary content.
    fn room_for_bytes(&mut self, count: usize) -> &mut [u8] {
        self.0.resize(count);
        self.0.as_mut_slice()
    }

    /// Space for `count` numbers, with arbitrary content.
    fn room(&mut self, count: usize, dtype: Dtype) -> Numbers<'_> {
        let bytes = self.room_for_bytes(count * dtype.size_bytes());
        match dtype {
            Dtype::F32 => Numbers::F32(bytemuck::cast_slice_mut(bytes)),
            Dtype::F16 => Numbers::Bits16(bytemuck::cast_slice_mut(bytes), SixteenBits::F16),
            Dtype::Bf16 => Numbers::Bits16(bytemuck::cast_slice_mut(bytes), SixteenBits::Bf16),
        }
    }
}

/// A rank's part of a tensor, to be read.
pub(super) struct Read<'a> {
    pub(super) stored: &'a Stored,
    pub(super) window: Window,
    /// The encoding that is wanted: plain numbers, or the stored one.
    pub(super) encoding: Encoding,
    pub(super) validation: Validation,
}

impl<'a> Read<'a> {
    /// `rows` of the window: whole heads if the rows of a head must be reordered. They are borrowed if they lie in
    /// memory exactly as requested, else they overwrite `buffer`.
    pub(super) fn rows<'b>(&self, rows: Range<usize>, buffer: &'b mut RowBuffer) -> Result<Rows<'b>, Error>
    where
        'a: 'b,
    {
        if let Some(lent) = self.lent(&rows)? {
            return Ok(lent);
        }
        match self.encoding {
            Encoding::Plain(dtype) => self.fill(rows, dtype, buffer)?,
            Encoding::Blocks(format) => self.fill_blocks(rows, format, buffer)?,
        }
        Ok(buffer.rows(self.encoding))
    }

    fn lent(&self, rows: &Range<usize>) -> Result<Option<Rows<'a>>, Error> {
        let &Stored { columns, encoding, row_order, norm_offset, .. } = self.stored;
        // Any conversion needs a copy, and validation is a pass over the numbers that is cheaper after it.
        let as_wanted = columns == self.window.columns.len()
            && encoding == self.encoding
            && row_order == RowOrder::Halves
            && norm_offset == 0.0
            && self.validation == Validation::Trust;
        if !as_wanted {
            return Ok(None);
        }
        let start = self.offset(self.window.rows.start + rows.start);
        let range = start..start + (rows.len() * self.stored.row_bytes()) as u64;
        let lent = self.stored.file.bytes.lend(range).map_err(|error| self.unread(error))?;
        Ok(lent.and_then(|bytes| Rows::new(bytes, encoding)))
    }

    /// Quantised weights as they are stored.
    fn fill_blocks(&self, rows: Range<usize>, format: BlockFormat, buffer: &mut RowBuffer) -> Result<(), Error> {
        let columns = &self.window.columns;
        let row_bytes = self.stored.row_bytes_of(columns);
        let bytes = buffer.room_for_bytes(rows.len() * row_bytes);
        self.read_blocks(bytes, self.window.rows.start + rows.start)?;
        if let RowOrder::Pairs { head_dim } = self.stored.row_order {
            bytes.chunks_mut(head_dim * row_bytes).for_each(|head| pairs_to_halves(head, row_bytes));
        }
        if self.validation == Validation::Finite {
            let mut numbers = vec![0.0; rows.len() * columns.len()];
            format.dequantize(bytes, &mut numbers);
            self.check_finite(&rows, &Numbers::F32(&mut numbers))?;
        }
        Ok(())
    }

    fn fill(&self, rows: Range<usize>, dtype: Dtype, buffer: &mut RowBuffer) -> Result<(), Error> {
        let count = rows.len() * self.window.columns.len();
        let norm_offset = self.stored.norm_offset;
        let mut numbers = buffer.room(count, dtype);
        if norm_offset == 0.0 {
            self.fetch(&rows, &mut numbers)?;
        } else {
            // Added in single precision: in 16 bits, `weight - 1` plus 1 would be rounded twice.
            let mut wide = vec![0.0; count];
            self.fetch(&rows, &mut Numbers::F32(&mut wide))?;
            wide.iter_mut().for_each(|number| *number += norm_offset);
            numbers.store(&wide);
        }
        match self.validation {
            Validation::Trust => Ok(()),
            Validation::Finite => self.check_finite(&rows, &numbers),
        }
    }

    fn fetch(&self, rows: &Range<usize>, numbers: &mut Numbers<'_>) -> Result<(), Error> {
        let columns = &self.window.columns;
        let first_row = self.window.rows.start + rows.start;
        let whole_rows = columns.len() == self.stored.columns;
        if whole_rows && self.stored.encoding == Encoding::Plain(numbers.dtype()) {
            self.read_bytes(numbers.as_bytes_mut(), first_row, 0)?;
        } else if whole_rows {
            let mut bytes = Bytes::zeros(rows.len() * self.stored.row_bytes());
            self.read_bytes(bytes.as_mut_slice(), first_row, 0)?;
            decode(self.stored.encoding, &bytes, numbers);
        } else {
            // Row-parallel matrices are split by columns: only the rank's columns cross the network.
            self.fetch_strided(numbers, first_row, rows.len())?;
        }
        if let RowOrder::Pairs { head_dim } = self.stored.row_order {
            // Per head: a rotation never crosses a head, and neither does the permutation.
            let head_numbers = head_dim * columns.len();
            match numbers {
                Numbers::F32(numbers) => {
                    numbers.chunks_mut(head_numbers).for_each(|head| pairs_to_halves(head, columns.len()))
                }
                Numbers::Bits16(numbers, _) => {
                    numbers.chunks_mut(head_numbers).for_each(|head| pairs_to_halves(head, columns.len()))
                }
            }
        }
        Ok(())
    }

    /// Reads part of each row: the blocks that it touches, then cuts out the requested numbers.
    fn fetch_strided(&self, numbers: &mut Numbers<'_>, first_row: usize, rows: usize) -> Result<(), Error> {
        let columns = &self.window.columns;
        let encoding = self.stored.encoding;
        let (block_len, block_bytes) = (encoding.block_len(), encoding.block_bytes());
        let blocks = self.stored.blocks_of(columns);
        let mut bytes = Bytes::zeros(rows * blocks.len() * block_bytes);
        self.read_blocks(bytes.as_mut_slice(), first_row)?;
        let skip = columns.start - blocks.start * block_len;
        let width = blocks.len() * block_len;
        if skip == 0 && width == columns.len() {
            decode(encoding, &bytes, numbers);
            return Ok(());
        }
        // Quantised blocks cannot be split: the first and last may contain numbers of other ranks.
        fn cut<T: Copy>(wide: &[T], width: usize, skip: usize, columns: usize, to: &mut [T]) {
            for (row, to) in wide.chunks(width).zip(to.chunks_mut(columns)) {
                to.copy_from_slice(&row[skip..skip + columns]);
            }
        }
        match numbers {
            Numbers::F32(to) => {
                let mut wide = vec![0f32; rows * width];
                decode(encoding, &bytes, &mut Numbers::F32(&mut wide));
                cut(&wide, width, skip, columns.len(), to);
            }
            Numbers::Bits16(to, format) => {
                let mut wide = vec![0u16; rows * width];
                decode(encoding, &bytes, &mut Numbers::Bits16(&mut wide, *format));
                cut(&wide, width, skip, columns.len(), to);
            }
        }
        Ok(())
    }

    /// Reads of rows from `first_row` on the blocks that the window touches.
    fn read_blocks(&self, to: &mut [u8], first_row: usize) -> Result<(), Error> {
        let columns = &self.window.columns;
        if columns.len() == self.stored.columns {
            return self.read_bytes(to, first_row, 0);
        }
        let skipped = self.stored.blocks_of(columns).start * self.stored.encoding.block_bytes();
        for (row, to) in to.chunks_mut(self.stored.row_bytes_of(columns)).enumerate() {
            // One read for each row: a rank's columns are contiguous only within a row.
            self.read_bytes(to, first_row + row, skipped)?;
        }
        Ok(())
    }

    fn read_bytes(&self, to: &mut [u8], row: usize, byte_in_row: usize) -> Result<(), Error> {
        let offset = self.offset(row) + byte_in_row as u64;
        self.stored.file.bytes.read_exact_at(to, offset).map_err(|error| self.unread(error))
    }

    /// Offset of `row` of the whole tensor in its file.
    fn offset(&self, row: usize) -> u64 {
        self.stored.offset + row as u64 * self.stored.row_bytes() as u64
    }

    fn unread(&self, source: std::io::Error) -> Error {
        Error::read(&self.stored.file.path, format!("tensor {}", self.stored.name), source)
    }

    fn check_finite(&self, rows: &Range<usize>, numbers: &Numbers<'_>) -> Result<(), Error> {
        let Some((position, value)) = numbers.first_not_finite() else { return Ok(()) };
        let columns = &self.window.columns;
        let row = self.window.rows.start + rows.start + position / columns.len();
        let index =
            if self.stored.columns == 1 { vec![row] } else { vec![row, columns.start + position % columns.len()] };
        // An infinity may be of our making: float16 ends at 65504, bfloat16 at 3e38.
        let narrowed = numbers.dtype() == Dtype::F16 && self.stored.encoding != Encoding::Plain(Dtype::F16);
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

/// Moves rows 2i and 2i + 1 of a head to i and i + half of it.
fn pairs_to_halves<T: Copy>(head: &mut [T], columns: usize) {
    // A copy of one head: the permutation is not its own inverse, and done in place it would have to follow cycles.
    let pairs = head.to_vec();
    let half = head.len() / columns / 2;
    for (row, numbers) in pairs.chunks(columns).enumerate() {
        let to = (row / 2 + (row % 2) * half) * columns;
        head[to..to + columns].copy_from_slice(numbers);
    }
}

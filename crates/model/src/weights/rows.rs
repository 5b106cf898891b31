//! Rows of one tensor on their way from a file to memory.
//!
//! Read where they lie, decoded where they are written otherwise, cut where a rank holds part of each row, put in the
//! decoder's order, and looked at where that was asked for.

use std::ops::Range;

use candle_core::{Device, Tensor};
use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};

use crate::decode::{Bytes, Numbers, SixteenBits, decode};
use crate::read_at::Lent;
use crate::shard::Window;
use crate::stored::{Encoding, RowOrder, Stored};
use crate::{Dtype, Error};

use super::Validation;

/// Rows one after the other.
#[derive(Clone, Copy, Debug)]
pub enum RowSlice<'a> {
    /// In single precision.
    F32(&'a [f32]),
    /// In half precision.
    F16(&'a [f16]),
    /// As bfloat16.
    Bf16(&'a [bf16]),
}

impl<'a> RowSlice<'a> {
    /// `None` where `bytes` do not lie as numbers of `dtype` must.
    fn of(bytes: &'a [u8], dtype: Dtype) -> Option<Self> {
        let bits = || bytemuck::try_cast_slice::<u8, u16>(bytes).ok();
        match dtype {
            Dtype::F32 => Some(RowSlice::F32(bytemuck::try_cast_slice(bytes).ok()?)),
            Dtype::F16 => Some(RowSlice::F16(bits()?.reinterpret_cast())),
            Dtype::Bf16 => Some(RowSlice::Bf16(bits()?.reinterpret_cast())),
        }
    }
}

/// Rows that were read: where they lay, or in a [`RowBuffer`].
pub struct Rows<'a> {
    bytes: Lent<'a>,
    dtype: Dtype,
}

impl<'a> Rows<'a> {
    fn new(bytes: Lent<'a>, dtype: Dtype) -> Option<Self> {
        RowSlice::of(&bytes, dtype).is_some().then_some(Self { bytes, dtype })
    }

    /// The numbers.
    pub fn numbers(&self) -> RowSlice<'_> {
        RowSlice::of(&self.bytes, self.dtype).expect("rows that lie as numbers must")
    }

    /// A copy on the CPU.
    pub(super) fn to_tensor(&self, shape: Vec<usize>) -> candle_core::Result<Tensor> {
        match self.numbers() {
            RowSlice::F32(numbers) => Tensor::from_slice(numbers, shape, &Device::Cpu),
            RowSlice::F16(numbers) => Tensor::from_slice(numbers, shape, &Device::Cpu),
            RowSlice::Bf16(numbers) => Tensor::from_slice(numbers, shape, &Device::Cpu),
        }
    }
}

/// Memory for rows of one format, kept from one reading to the next.
pub struct RowBuffer {
    bytes: Bytes,
    dtype: Dtype,
}

impl RowBuffer {
    /// Empty, for numbers of `dtype`.
    pub fn new(dtype: Dtype) -> Self {
        Self { bytes: Bytes::zeros(0), dtype }
    }

    fn rows(&self) -> Rows<'_> {
        Rows { bytes: Box::new(self.bytes.as_slice()), dtype: self.dtype }
    }

    /// Room for `count` numbers, holding whatever was left in it.
    fn room(&mut self, count: usize) -> Numbers<'_> {
        self.bytes.resize(count * self.dtype.size_bytes());
        let bytes = self.bytes.as_mut_slice();
        match self.dtype {
            Dtype::F32 => Numbers::F32(bytemuck::cast_slice_mut(bytes)),
            Dtype::F16 => Numbers::Bits16(bytemuck::cast_slice_mut(bytes), SixteenBits::F16),
            Dtype::Bf16 => Numbers::Bits16(bytemuck::cast_slice_mut(bytes), SixteenBits::Bf16),
        }
    }
}

/// One rank's part of a tensor, to be read.
pub(super) struct Read<'a> {
    pub(super) stored: &'a Stored,
    pub(super) window: Window,
    pub(super) validation: Validation,
}

impl<'a> Read<'a> {
    /// `rows` of the window: whole heads, where the rows of a head must change places. Where they lie in memory just as
    /// they are wanted they stay there, else they overwrite `buffer`.
    pub(super) fn rows<'b>(&self, rows: Range<usize>, buffer: &'b mut RowBuffer) -> Result<Rows<'b>, Error>
    where
        'a: 'b,
    {
        if let Some(lent) = self.lent(&rows, buffer.dtype)? {
            return Ok(lent);
        }
        self.fill(rows, buffer)?;
        Ok(buffer.rows())
    }

    fn lent(&self, rows: &Range<usize>, dtype: Dtype) -> Result<Option<Rows<'a>>, Error> {
        let &Stored { columns, encoding, row_order, stored_less_by, .. } = self.stored;
        let as_wanted = columns == self.window.columns.len()
            && encoding == Encoding::Plain(dtype)
            && row_order == RowOrder::Halves
            && stored_less_by == 0.0
            && self.validation == Validation::Trust;
        if !as_wanted {
            return Ok(None);
        }
        let start = self.offset(self.window.rows.start + rows.start);
        let range = start..start + (rows.len() * self.stored.row_bytes()) as u64;
        let lent = self.stored.file.bytes.lend(range).map_err(|error| self.unread(error))?;
        Ok(lent.and_then(|bytes| Rows::new(bytes, dtype)))
    }

    fn fill(&self, rows: Range<usize>, buffer: &mut RowBuffer) -> Result<(), Error> {
        let count = rows.len() * self.window.columns.len();
        let less_by = self.stored.stored_less_by;
        let mut numbers = buffer.room(count);
        if less_by == 0.0 {
            self.fetch(&rows, &mut numbers)?;
        } else {
            let mut wide = vec![0.0; count];
            self.fetch(&rows, &mut Numbers::F32(&mut wide))?;
            wide.iter_mut().for_each(|number| *number += less_by);
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
            self.fetch_strided(numbers, first_row, rows.len())?;
        }
        if let RowOrder::Pairs { head_dim } = self.stored.row_order {
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

    /// Part of each row: the bytes of the blocks that it touches, then the numbers wanted of them.
    fn fetch_strided(&self, numbers: &mut Numbers<'_>, first_row: usize, rows: usize) -> Result<(), Error> {
        let columns = &self.window.columns;
        let encoding = self.stored.encoding;
        let (block_len, block_bytes) = (encoding.block_len(), encoding.block_bytes());
        let blocks = self.stored.blocks_of(columns);
        let mut bytes = Bytes::zeros(rows * blocks.len() * block_bytes);
        for (row, bytes) in bytes.as_mut_slice().chunks_mut(blocks.len() * block_bytes).enumerate() {
            self.read_bytes(bytes, first_row + row, blocks.start * block_bytes)?;
        }
        let skip = columns.start - blocks.start * block_len;
        let width = blocks.len() * block_len;
        if skip == 0 && width == columns.len() {
            decode(encoding, &bytes, numbers);
            return Ok(());
        }
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

    fn read_bytes(&self, to: &mut [u8], row: usize, byte_in_row: usize) -> Result<(), Error> {
        let offset = self.offset(row) + byte_in_row as u64;
        self.stored.file.bytes.read_exact_at(to, offset).map_err(|error| self.unread(error))
    }

    /// Where `row` of the whole tensor begins in its file.
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

/// Rows 2i and 2i + 1 of a head become rows i and i + half of it.
fn pairs_to_halves<T: Copy>(head: &mut [T], columns: usize) {
    let pairs = head.to_vec();
    let half = head.len() / columns / 2;
    for (row, numbers) in pairs.chunks(columns).enumerate() {
        let to = (row / 2 + (row % 2) * half) * columns;
        head[to..to + columns].copy_from_slice(numbers);
    }
}

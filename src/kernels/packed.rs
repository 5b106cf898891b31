//! Weights, packed once at load.

use half::{bf16, f16};

use super::Pool;

/// Rows of weights as they came: `[rows, in]`, row-major.
#[derive(Clone, Copy, Debug)]
pub enum WeightSlice<'a> {
    /// 32 bits each, packed as they are.
    F32(&'a [f32]),
    /// Kept in 16 bits; widened, exactly, when used.
    Bf16(&'a [bf16]),
    /// Kept in 16 bits; widened, exactly, when used.
    F16(&'a [f16]),
}

impl WeightSlice<'_> {
    /// Entries.
    pub fn len(&self) -> usize {
        match self {
            WeightSlice::F32(entries) => entries.len(),
            WeightSlice::Bf16(entries) => entries.len(),
            WeightSlice::F16(entries) => entries.len(),
        }
    }

    /// No entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A matrix `[out, in]`, packed for [`super::matmul`].
pub struct PackedMatrix {
    out: usize,
    in_: usize,
    rows: Vec<f32>,
}

impl PackedMatrix {
    /// Packs `weights`, `[out, in_]`.
    ///
    /// # Panics
    /// If `weights` does not have `out * in_` entries.
    pub fn pack(pool: &Pool, weights: WeightSlice<'_>, out: usize, in_: usize) -> PackedMatrix {
        assert_eq!(weights.len(), out * in_, "weights of a [{out}, {in_}] matrix");
        PackedMatrix::pack_rows(pool, &[weights], in_)
    }

    /// Packs the rows of several matrices, each `[?, in_]`, one below the other.
    ///
    /// # Panics
    /// If a source is not whole rows, or sources are stored in different types.
    pub fn pack_rows(_pool: &Pool, sources: &[WeightSlice<'_>], in_: usize) -> PackedMatrix {
        let mut rows = Vec::new();
        for source in sources {
            match source {
                WeightSlice::F32(entries) => rows.extend_from_slice(entries),
                WeightSlice::Bf16(entries) => rows.extend(entries.iter().map(|x| x.to_f32())),
                WeightSlice::F16(entries) => rows.extend(entries.iter().map(|x| x.to_f32())),
            }
        }
        PackedMatrix { out: rows.len().checked_div(in_).unwrap_or(0), in_, rows }
    }

    /// Rows of the matrix: entries of an output row.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Columns of the matrix: entries of an input row.
    pub fn in_(&self) -> usize {
        self.in_
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        self.rows.len() * 4
    }

    /// Copies row `row` (of `out`) into `into`, widened to f32: a tied embedding needs no second copy of the head.
    ///
    /// # Panics
    /// If there is no such row, or `into` is not `in_` long.
    pub fn unpack_row(&self, row: usize, into: &mut [f32]) {
        into.copy_from_slice(&self.rows[row * self.in_..][..self.in_]);
    }
}

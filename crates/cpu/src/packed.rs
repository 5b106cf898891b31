//! Weights, packed once at load into the order in which the innermost loop reads them.
//!
//! The rows of a matrix `[out, in]` are output columns. They are taken in panels as wide as two vectors; a panel
//! holds, for each `k` in order, the `k`-th entries of its rows side by side. The last panel is filled up with zeros.

use std::ops::Range;

use half::{bf16, f16};
use parking_lot::Mutex;

use super::isa::Available;
use super::memory::{LINE_BYTES, Region};
use super::{Pool, simd};

/// Bytes of a row that are packed before the next row's turn.
const ROW_PART_BYTES: usize = 16 * LINE_BYTES;

/// The widest panel of any instruction set.
pub(super) const WIDEST_PANEL: usize = 32;

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
    /// Entries that it holds.
    pub fn len(&self) -> usize {
        match self {
            WeightSlice::F32(entries) => entries.len(),
            WeightSlice::Bf16(entries) => entries.len(),
            WeightSlice::F16(entries) => entries.len(),
        }
    }

    /// Tells whether it holds no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries in `range`.
    fn part(&self, range: Range<usize>) -> Self {
        match self {
            WeightSlice::F32(entries) => WeightSlice::F32(&entries[range]),
            WeightSlice::Bf16(entries) => WeightSlice::Bf16(&entries[range]),
            WeightSlice::F16(entries) => WeightSlice::F16(&entries[range]),
        }
    }

    fn storage(&self) -> Storage {
        match self {
            WeightSlice::F32(_) => Storage::F32,
            WeightSlice::Bf16(_) => Storage::Bf16,
            WeightSlice::F16(_) => Storage::F16,
        }
    }
}

/// Number format of an entry in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In single precision.
    F32,
    /// As bfloat16: entry `i` of a row of a panel beside entry `i + panel / 2`, which one load takes apart.
    Bf16,
    /// Values stored as float16.
    F16,
}

impl Storage {
    fn bytes(self) -> usize {
        match self {
            Storage::F32 => 4,
            Storage::Bf16 | Storage::F16 => 2,
        }
    }

    /// Place of the `j`-th entry in a row of a panel of `panel` entries.
    #[inline(always)]
    pub(super) fn place(self, j: usize, panel: usize) -> usize {
        match self {
            Storage::F32 | Storage::F16 => j,
            Storage::Bf16 if j < panel / 2 => 2 * j,
            Storage::Bf16 => 2 * (j - panel / 2) + 1,
        }
    }

    /// Row of the matrix that is kept at `place` of a panel: the inverse of [`Storage::place`].
    fn row_at(self, place: usize, panel: usize) -> usize {
        match self {
            Storage::F32 | Storage::F16 => place,
            Storage::Bf16 => place / 2 + place % 2 * (panel / 2),
        }
    }
}

/// A matrix `[out, in]`, packed for [`super::matmul()`].
pub struct PackedMatrix {
    out: usize,
    in_: usize,
    storage: Storage,
    isa: Available,
    panel: usize,
    memory: Region,
}

impl PackedMatrix {
    /// Packs `weights`, `[out, in_]`.
    ///
    /// # Panics
    /// If `weights` does not have `out * in_` entries.
    pub fn pack(pool: &Pool, weights: WeightSlice<'_>, out: usize, in_: usize) -> PackedMatrix {
        let packing = Packing::new(pool, weights.storage(), out, in_);
        packing.rows_in_parallel(pool, 0, weights);
        packing.finish()
    }

    /// Packs the rows of several matrices, each `[?, in_]`, one below the other.
    ///
    /// # Panics
    /// If there is no source, one is not whole rows, or they are stored in different types.
    pub fn pack_rows(pool: &Pool, sources: &[WeightSlice<'_>], in_: usize) -> PackedMatrix {
        for source in sources {
            assert!(in_ > 0 && source.len().is_multiple_of(in_), "{} weights in rows of {in_}", source.len());
            assert_eq!(source.storage(), sources[0].storage(), "sources of one matrix must have one type");
        }
        let out = sources.iter().map(|source| source.len() / in_).sum();
        let storage = sources.first().expect("a matrix needs a source").storage();
        let packing = Packing::new(pool, storage, out, in_);
        let mut first = 0;
        for &source in sources {
            packing.rows_in_parallel(pool, first, source);
            first += source.len() / in_;
        }
        packing.finish()
    }

    /// Rows of the matrix: entries of an output row.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Columns of the matrix: entries of an input row.
    pub fn in_(&self) -> usize {
        self.in_
    }

    /// Memory of all panels, in bytes.
    pub fn bytes(&self) -> usize {
        self.panels() * self.panel_bytes()
    }

    /// Copies row `row` (of `out`) into `into`, widened to f32: a tied embedding needs no second copy of the head.
    ///
    /// # Panics
    /// If there is no such row, or `into` is not `in_` long.
    pub fn unpack_row(&self, row: usize, into: &mut [f32]) {
        assert!(row < self.out && into.len() == self.in_, "row {row} into {} of {self:?}", into.len());
        let (panel, j) = (row / self.panel, row % self.panel);
        let place = self.storage.place(j, self.panel);
        let start = self.panel_start(panel);
        for (k, x) in into.iter_mut().enumerate() {
            let at = k * self.panel + place;
            // SAFETY: `panel_start` has `in_` rows of `panel` entries in this storage.
            *x = unsafe {
                match self.storage {
                    Storage::F32 => *start.cast::<f32>().add(at),
                    Storage::F16 => (*start.cast::<f16>().add(at)).to_f32(),
                    Storage::Bf16 => (*start.cast::<bf16>().add(at)).to_f32(),
                }
            };
        }
    }

    pub(super) fn storage(&self) -> Storage {
        self.storage
    }

    /// Instruction set that it was packed for.
    pub(super) fn isa(&self) -> Available {
        self.isa
    }

    pub(super) fn panels(&self) -> usize {
        self.out.div_ceil(self.panel)
    }

    /// The first entry of a panel: `[in_, panel]`.
    pub(super) fn panel_start(&self, panel: usize) -> *const u8 {
        debug_assert!(panel < self.panels());
        self.memory.as_ptr().wrapping_add(panel * self.panel_bytes())
    }

    fn panel_bytes(&self) -> usize {
        self.in_ * self.panel * self.storage.bytes()
    }
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedMatrix[{}, {}] {:?} for {}", self.out, self.in_, self.storage, self.isa.isa().name())
    }
}

/// A matrix in the making: its rows arrive in any order, from any number of threads.
pub struct Packing {
    matrix: PackedMatrix,
    /// Rows that have been brought.
    brought: Mutex<Vec<Range<usize>>>,
}

impl Packing {
    /// Room for a matrix `[out, in_]`, of zeros that cost no memory until rows arrive.
    pub fn new(pool: &Pool, storage: Storage, out: usize, in_: usize) -> Packing {
        let isa = pool.available();
        let panel = simd::panel_width(isa.isa());
        let memory = pool.arena().take(out.div_ceil(panel) * panel * in_ * storage.bytes());
        let matrix = PackedMatrix { out, in_, storage, isa, panel, memory };
        Packing { matrix, brought: Mutex::default() }
    }

    /// Packs the rows from `first` on.
    ///
    /// # Panics
    /// If these are not whole rows of the matrix, are stored in another type, or some of them were brought before.
    pub fn rows(&self, first: usize, rows: WeightSlice<'_>) {
        let range = self.claim(first, &rows);
        self.pack(range, rows);
    }

    /// The matrix.
    ///
    /// # Panics
    /// If rows are missing.
    pub fn finish(self) -> PackedMatrix {
        let brought = self.brought.into_inner();
        let count: usize = brought.iter().map(Range::len).sum();
        assert_eq!(count, self.matrix.out, "rows that were brought to {:?}", self.matrix);
        self.matrix
    }

    /// As [`Packing::rows`], on all threads of `pool`.
    fn rows_in_parallel(&self, pool: &Pool, first: usize, rows: WeightSlice<'_>) {
        let PackedMatrix { in_, panel, .. } = self.matrix;
        let range = self.claim(first, &rows);
        // Each task packs what one panel has of these rows.
        let (first_panel, end_panel) = (range.start / panel, range.end.div_ceil(panel));
        pool.run(end_panel - first_panel, |index| {
            let panel_rows = (first_panel + index) * panel..(first_panel + index + 1) * panel;
            let own = panel_rows.start.max(range.start)..panel_rows.end.min(range.end);
            let entries = (own.start - range.start) * in_..(own.end - range.start) * in_;
            self.pack(own, rows.part(entries));
        });
    }

    fn claim(&self, first: usize, rows: &WeightSlice<'_>) -> Range<usize> {
        let PackedMatrix { out, in_, storage, .. } = self.matrix;
        let count = rows.len().checked_div(in_).unwrap_or(out);
        assert!(
            rows.len() == count * in_ && first + count <= out,
            "{} weights from row {first} on of a [{out}, {in_}] matrix",
            rows.len()
        );
        assert_eq!(rows.storage(), storage, "rows of one matrix must have one type");
        let range = first..first + count;
        let mut brought = self.brought.lock();
        let twice = brought.iter().find(|other| other.start < range.end && range.start < other.end);
        assert!(twice.is_none(), "rows {range:?} are brought, and rows {twice:?} were before");
        brought.push(range.clone());
        range
    }

    /// Writes `range`, which no other thread writes.
    fn pack(&self, range: Range<usize>, rows: WeightSlice<'_>) {
        match rows {
            WeightSlice::F32(rows) => self.pack_as(range, rows),
            WeightSlice::Bf16(rows) => self.pack_as(range, rows),
            WeightSlice::F16(rows) => self.pack_as(range, rows),
        }
    }

    fn pack_as<T: Copy>(&self, range: Range<usize>, rows: &[T]) {
        let PackedMatrix { in_, panel, storage, .. } = self.matrix;
        // Of each row so much at a time that memory is read ahead, and what becomes of it still fits the first cache.
        let step = ROW_PART_BYTES / size_of::<T>();
        let mut row = range.start;
        while row < range.end {
            let first_of_panel = row / panel * panel;
            let end = range.end.min(first_of_panel + panel);
            let to = self.matrix.panel_start(row / panel).cast_mut().cast::<T>();
            for first in (0..in_).step_by(step) {
                let depth = first..in_.min(first + step);
                let part = |row: usize| &rows[(row - range.start) * in_..][depth.clone()];
                if end - row == panel {
                    for place in (0..panel).step_by(4) {
                        let four = [0, 1, 2, 3].map(|i| part(first_of_panel + storage.row_at(place + i, panel)));
                        // SAFETY: the panel has `in_` rows of `panel` entries of this type, which no thread reads yet; all
                        // of it is this call's alone.
                        unsafe { interleave(four, to.add(first * panel + place), panel) };
                    }
                } else {
                    for row in row..end {
                        let to = to.wrapping_add(first * panel + storage.place(row - first_of_panel, panel));
                        for (k, &x) in part(row).iter().enumerate() {
                            // SAFETY: as above; this place in each row of the panel is this call's alone.
                            unsafe { to.add(k * panel).write(x) };
                        }
                    }
                }
            }
            row = end;
        }
    }
}

/// Entries of four rows side by side, those of the next `k` so many entries further on.
///
/// # Safety
/// For each `k` of the rows, four entries can be written.
#[inline(always)]
unsafe fn interleave<T: Copy>(rows: [&[T]; 4], to: *mut T, stride: usize) {
    let [a, b, c, d] = rows;
    for (k, (((&a, &b), &c), &d)) in a.iter().zip(b).zip(c).zip(d).enumerate() {
        // SAFETY: the caller's.
        unsafe { to.add(k * stride).cast::<[T; 4]>().write([a, b, c, d]) };
    }
}

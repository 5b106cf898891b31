//! Weights, packed once at load into the order in which the innermost loop reads them.
//!
//! The rows of a matrix `[out, in]` are output columns. They are taken in panels as wide as two vectors; a panel
//! holds, for each `k` in order, the `k`-th entries of its rows side by side, or for each block of quantised weights what
//! coding.rs says. Rows of one number format after the other are a segment, whose last panel is filled up with zeros.

use std::ops::Range;

use flashjob_block_format::BlockFormat;
use half::{bf16, f16};
use parking_lot::Mutex;

use super::coding::{column_block_bytes, pack_block, unpack_column};
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
    /// Whole blocks of quantised weights, kept in their bits; widened when used to the numbers that they stand for.
    Blocks(BlockFormat, &'a [u8]),
}

impl WeightSlice<'_> {
    /// Entries that it holds.
    pub fn len(&self) -> usize {
        match self {
            WeightSlice::F32(entries) => entries.len(),
            WeightSlice::Bf16(entries) => entries.len(),
            WeightSlice::F16(entries) => entries.len(),
            WeightSlice::Blocks(format, bytes) => bytes.len() / format.block_bytes() * format.block_len(),
        }
    }

    /// Tells whether it holds no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries in `range`, whole blocks of them.
    fn part(&self, range: Range<usize>) -> Self {
        match self {
            WeightSlice::F32(entries) => WeightSlice::F32(&entries[range]),
            WeightSlice::Bf16(entries) => WeightSlice::Bf16(&entries[range]),
            WeightSlice::F16(entries) => WeightSlice::F16(&entries[range]),
            WeightSlice::Blocks(format, bytes) => {
                let at = |entry: usize| entry / format.block_len() * format.block_bytes();
                WeightSlice::Blocks(*format, &bytes[at(range.start)..at(range.end)])
            }
        }
    }

    fn storage(&self) -> Storage {
        match self {
            WeightSlice::F32(_) => Storage::F32,
            WeightSlice::Bf16(_) => Storage::Bf16,
            WeightSlice::F16(_) => Storage::F16,
            WeightSlice::Blocks(format, _) => Storage::Blocks(*format),
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
    /// Quantised, in blocks along a row.
    Blocks(BlockFormat),
}

impl Storage {
    /// Entries of the smallest unit along a row.
    pub(super) fn block_len(self) -> usize {
        match self {
            Storage::F32 | Storage::Bf16 | Storage::F16 => 1,
            Storage::Blocks(format) => format.block_len(),
        }
    }

    /// Bytes of `depth` entries of one column of a panel, whole blocks of them.
    pub(super) fn column_bytes(self, depth: usize) -> usize {
        match self {
            Storage::F32 => 4 * depth,
            Storage::Bf16 | Storage::F16 => 2 * depth,
            Storage::Blocks(format) => depth / format.block_len() * column_block_bytes(format),
        }
    }

    /// Place of the `j`-th entry in a row of a panel of `panel` entries.
    #[inline(always)]
    pub(super) fn place(self, j: usize, panel: usize) -> usize {
        match self {
            Storage::F32 | Storage::F16 | Storage::Blocks(_) => j,
            Storage::Bf16 if j < panel / 2 => 2 * j,
            Storage::Bf16 => 2 * (j - panel / 2) + 1,
        }
    }

    /// Row of the matrix that is kept at `place` of a panel: the inverse of [`Storage::place`].
    fn row_at(self, place: usize, panel: usize) -> usize {
        match self {
            Storage::F32 | Storage::F16 | Storage::Blocks(_) => place,
            Storage::Bf16 => place / 2 + place % 2 * (panel / 2),
        }
    }
}

/// A matrix `[out, in]`, packed for [`super::matmul()`].
pub struct PackedMatrix {
    out: usize,
    in_: usize,
    isa: Available,
    /// Rows of a panel.
    panel: usize,
    segments: Vec<Segment>,
}

/// Rows of a matrix, one after the other, in one number format.
struct Segment {
    storage: Storage,
    /// Rows of the matrix.
    rows: Range<usize>,
    /// Panels of the matrix.
    panels: Range<usize>,
    memory: Region,
}

/// A panel of a matrix.
#[derive(Clone, Copy)]
pub(super) struct PanelRef {
    /// Number format of its entries.
    pub(super) storage: Storage,
    /// The first entry: `[in_, panel]`, or as coding.rs says.
    pub(super) start: *const u8,
    /// First row of the matrix in it.
    pub(super) first: usize,
    /// Rows of the matrix that it has.
    pub(super) rows: usize,
}

impl PackedMatrix {
    /// Packs `weights`, `[out, in_]`.
    ///
    /// # Panics
    /// If `weights` does not have `out * in_` entries.
    pub fn pack(pool: &Pool, weights: WeightSlice<'_>, out: usize, in_: usize) -> PackedMatrix {
        let packing = Packing::new(pool, &[(weights.storage(), out)], in_);
        packing.rows_in_parallel(pool, 0, weights);
        packing.finish()
    }

    /// Packs the rows of several matrices, each `[?, in_]`, one below the other.
    ///
    /// # Panics
    /// If there is no source, or one is not whole rows.
    pub fn pack_rows(pool: &Pool, sources: &[WeightSlice<'_>], in_: usize) -> PackedMatrix {
        for source in sources {
            assert!(in_ > 0 && source.len().is_multiple_of(in_), "{} weights in rows of {in_}", source.len());
        }
        let segments: Vec<_> = sources.iter().map(|source| (source.storage(), source.len() / in_)).collect();
        let packing = Packing::new(pool, &segments, in_);
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
        self.segments.iter().map(|segment| segment.panels.len() * self.panel_bytes(segment.storage)).sum()
    }

    /// Copies row `row` (of `out`) into `into`, widened to f32: a tied embedding needs no second copy of the head.
    ///
    /// # Panics
    /// If there is no such row, or `into` is not `in_` long.
    pub fn unpack_row(&self, row: usize, into: &mut [f32]) {
        assert!(row < self.out && into.len() == self.in_, "row {row} into {} of {self:?}", into.len());
        let segment = self.segment_of(row);
        let (panel, j) = ((row - segment.rows.start) / self.panel, (row - segment.rows.start) % self.panel);
        let storage = segment.storage;
        let start = self.panel(segment.panels.start + panel).start;
        if let Storage::Blocks(format) = storage {
            // SAFETY: the panel has whole blocks of `in_` rows.
            return unsafe { unpack_column(format, start, self.panel, j, into) };
        }
        let place = storage.place(j, self.panel);
        for (k, x) in into.iter_mut().enumerate() {
            let at = k * self.panel + place;
            // SAFETY: the panel has `in_` rows of `panel` entries in this storage.
            *x = unsafe {
                match storage {
                    Storage::F32 => *start.cast::<f32>().add(at),
                    Storage::F16 => (*start.cast::<f16>().add(at)).to_f32(),
                    _ => (*start.cast::<bf16>().add(at)).to_f32(),
                }
            };
        }
    }

    /// Instruction set that it was packed for.
    pub(super) fn isa(&self) -> Available {
        self.isa
    }

    pub(super) fn panels(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.panels.end)
    }

    /// Number formats of its rows.
    pub(super) fn storages(&self) -> impl Iterator<Item = Storage> {
        self.segments.iter().map(|segment| segment.storage)
    }

    pub(super) fn panel(&self, panel: usize) -> PanelRef {
        debug_assert!(panel < self.panels());
        // One segment, or a few.
        let segment = self.segments.iter().find(|segment| panel < segment.panels.end);
        let segment = segment.expect("each panel is in a segment");
        let within = panel - segment.panels.start;
        let first = segment.rows.start + within * self.panel;
        let start = segment.memory.as_ptr().wrapping_add(within * self.panel_bytes(segment.storage));
        PanelRef { storage: segment.storage, start, first, rows: self.panel.min(segment.rows.end - first) }
    }

    fn segment_of(&self, row: usize) -> &Segment {
        self.segments.iter().find(|segment| segment.rows.contains(&row)).expect("each row is in a segment")
    }

    fn panel_bytes(&self, storage: Storage) -> usize {
        self.panel * storage.column_bytes(self.in_)
    }
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let storages: Vec<Storage> = self.storages().collect();
        write!(f, "PackedMatrix[{}, {}] {storages:?} for {}", self.out, self.in_, self.isa.isa().name())
    }
}

/// A matrix in the making: its rows arrive in any order, from any number of threads.
pub struct Packing {
    matrix: PackedMatrix,
    /// Rows that have been brought.
    brought: Mutex<Vec<Range<usize>>>,
}

impl Packing {
    /// Room for a matrix of so many rows in each number format, one below the other, with `in_` columns: of zeros that cost no
    /// memory until rows arrive.
    ///
    /// # Panics
    /// If rows of quantised weights are not whole blocks.
    pub fn new(pool: &Pool, formats: &[(Storage, usize)], in_: usize) -> Packing {
        let isa = pool.available();
        let panel = simd::panel_width(isa.isa());
        let (mut out, mut panels) = (0, 0);
        let mut segments: Vec<Segment> = Vec::new();
        // Neighbours of one format are one segment, so that only the last of them has a panel that is not full.
        for same in formats.chunk_by(|a, b| a.0 == b.0) {
            let (storage, rows) = (same[0].0, same.iter().map(|(_, rows)| rows).sum::<usize>());
            assert!(in_.is_multiple_of(storage.block_len()), "rows of {in_} entries in blocks of {storage:?}");
            let count = rows.div_ceil(panel);
            let memory = pool.arena().take(count * panel * storage.column_bytes(in_));
            segments.push(Segment { storage, rows: out..out + rows, panels: panels..panels + count, memory });
            (out, panels) = (out + rows, panels + count);
        }
        Packing { matrix: PackedMatrix { out, in_, isa, panel, segments }, brought: Mutex::default() }
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
        let in_ = self.matrix.in_;
        let range = self.claim(first, &rows);
        if range.is_empty() {
            return;
        }
        // Each task packs what one panel has of these rows.
        let segment = self.matrix.segment_of(range.start);
        let panel_of = |row: usize| segment.panels.start + (row - segment.rows.start) / self.matrix.panel;
        let panels = panel_of(range.start)..panel_of(range.end - 1) + 1;
        pool.run(panels.len(), |index| {
            let panel = self.matrix.panel(panels.start + index);
            let own = panel.first.max(range.start)..(panel.first + panel.rows).min(range.end);
            let entries = (own.start - range.start) * in_..(own.end - range.start) * in_;
            self.pack(own, rows.part(entries));
        });
    }

    fn claim(&self, first: usize, rows: &WeightSlice<'_>) -> Range<usize> {
        let PackedMatrix { out, in_, .. } = self.matrix;
        let count = rows.len().checked_div(in_).unwrap_or(out);
        assert!(
            rows.len() == count * in_ && first + count <= out,
            "{} weights from row {first} on of a [{out}, {in_}] matrix",
            rows.len()
        );
        let range = first..first + count;
        if !range.is_empty() {
            let segment = self.matrix.segment_of(first);
            assert!(
                rows.storage() == segment.storage && range.end <= segment.rows.end,
                "rows {range:?} in {:?} of {:?}",
                rows.storage(),
                self.matrix
            );
        }
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
            WeightSlice::Blocks(format, rows) => self.pack_blocks(range, format, rows),
        }
    }

    fn pack_blocks(&self, range: Range<usize>, format: BlockFormat, rows: &[u8]) {
        let PackedMatrix { in_, panel, .. } = self.matrix;
        let row_bytes = in_ / format.block_len() * format.block_bytes();
        for (row, bytes) in range.zip(rows.chunks_exact(row_bytes.max(1))) {
            let segment = self.matrix.segment_of(row);
            let within = row - segment.rows.start;
            let start = self.matrix.panel(segment.panels.start + within / panel).start.cast_mut();
            for (index, block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
                let to = start.wrapping_add(index * panel * column_block_bytes(format));
                // SAFETY: the panel has whole blocks of `in_` rows, which no thread reads yet; this column of it is this call's alone.
                unsafe { pack_block(format, block, to, panel, within % panel) };
            }
        }
    }

    fn pack_as<T: Copy>(&self, range: Range<usize>, rows: &[T]) {
        let PackedMatrix { in_, panel, .. } = self.matrix;
        // Of each row so much at a time that memory is read ahead, and what becomes of it still fits the first cache.
        let step = ROW_PART_BYTES / size_of::<T>();
        let mut row = range.start;
        while row < range.end {
            let segment = self.matrix.segment_of(row);
            let (storage, within) = (segment.storage, (row - segment.rows.start) / panel);
            let first_of_panel = segment.rows.start + within * panel;
            let end = range.end.min(first_of_panel + panel);
            let to = self.matrix.panel(segment.panels.start + within).start.cast_mut().cast::<T>();
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

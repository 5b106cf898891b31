//! Weights, packed once at load into the order in which the innermost loop reads them.
//!
//! The rows of a matrix `[out, in]` are output columns. They are taken in panels as wide as two vectors; a panel
//! holds, for each `k` in order, the `k`-th entries of its rows side by side. The last panel is filled up with zeros.

use half::{bf16, f16};

use super::isa::Available;
use super::memory::{Parts, Region};
use super::{Pool, simd};

/// The widest panel of any instruction set.
pub(super) const WIDEST_PANEL: usize = 32;

/// Entries of `k` taken from each row at a time: a cache line of f32.
const DEPTH_STEP: usize = 16;

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

    fn storage(&self) -> Storage {
        match self {
            WeightSlice::F32(_) => Storage::F32,
            WeightSlice::Bf16(_) => Storage::Bf16,
            WeightSlice::F16(_) => Storage::F16,
        }
    }
}

/// How an entry is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    F32,
    /// Entry `i` of a row of a panel beside entry `i + panel / 2`: see [`simd::Simd::load_bf16_pairs`].
    Bf16,
    F16,
}

impl Storage {
    fn bytes(self) -> usize {
        match self {
            Storage::F32 => 4,
            Storage::Bf16 | Storage::F16 => 2,
        }
    }

    /// Where in a row of a panel of `panel` entries the `j`-th is kept.
    #[inline(always)]
    pub(super) fn place(self, j: usize, panel: usize) -> usize {
        match self {
            Storage::F32 | Storage::F16 => j,
            Storage::Bf16 if j < panel / 2 => 2 * j,
            Storage::Bf16 => 2 * (j - panel / 2) + 1,
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
        assert_eq!(weights.len(), out * in_, "weights of a [{out}, {in_}] matrix");
        PackedMatrix::pack_all(pool, &[weights], out, in_)
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
        PackedMatrix::pack_all(pool, sources, out, in_)
    }

    fn pack_all(pool: &Pool, sources: &[WeightSlice<'_>], out: usize, in_: usize) -> PackedMatrix {
        let storage = sources.first().expect("a matrix needs a source").storage();
        let isa = pool.available();
        let panel = simd::panel_width(isa.isa());
        let entries = out.div_ceil(panel) * panel * in_;
        let memory = pool.arena().take(entries * storage.bytes());
        match storage {
            Storage::F32 => pack_panels(pool, sources, as_f32, in_, panel, storage, entries, &memory),
            Storage::F16 => pack_panels(pool, sources, as_f16, in_, panel, storage, entries, &memory),
            Storage::Bf16 => pack_panels(pool, sources, as_bf16, in_, panel, storage, entries, &memory),
        }
        PackedMatrix { out, in_, storage, isa, panel, memory }
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

    /// What it was packed for.
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

fn as_f32<'a>(slice: &WeightSlice<'a>) -> &'a [f32] {
    match slice {
        WeightSlice::F32(entries) => entries,
        _ => &[],
    }
}

fn as_bf16<'a>(slice: &WeightSlice<'a>) -> &'a [bf16] {
    match slice {
        WeightSlice::Bf16(entries) => entries,
        _ => &[],
    }
}

fn as_f16<'a>(slice: &WeightSlice<'a>) -> &'a [f16] {
    match slice {
        WeightSlice::F16(entries) => entries,
        _ => &[],
    }
}

/// Fills `memory`, of `entries` zeros, panel by panel, rows placed as `storage` has them.
#[allow(clippy::too_many_arguments)]
fn pack_panels<T: Copy + Send + Sync>(
    pool: &Pool,
    sources: &[WeightSlice<'_>],
    entries_of: impl for<'a> Fn(&WeightSlice<'a>) -> &'a [T] + Sync,
    in_: usize,
    panel: usize,
    storage: Storage,
    entries: usize,
    memory: &Region,
) {
    if entries == 0 {
        return;
    }
    // SAFETY: the memory has `entries` zeroed entries of this type, for which all bits zero is a value, and is
    // borrowed here until all tasks are done.
    let packed = Parts::new(unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<T>(), entries) });
    pool.run(entries / (panel * in_), |index| {
        let size = panel * in_;
        // SAFETY: each panel is one task's.
        let to = unsafe { packed.part(index * size..(index + 1) * size) };
        let mut rows: [(&[T], usize); WIDEST_PANEL] = [(&[], 0); WIDEST_PANEL];
        let all = sources.iter().flat_map(|source| entries_of(source).chunks_exact(in_));
        let mut count = 0;
        for (j, row) in all.skip(index * panel).take(panel).enumerate() {
            rows[j] = (row, storage.place(j, panel));
            count = j + 1;
        }
        for first in (0..in_).step_by(DEPTH_STEP) {
            let depth = DEPTH_STEP.min(in_ - first);
            let to = &mut to[first * panel..(first + depth) * panel];
            for &(row, place) in &rows[..count] {
                let from = &row[first..first + depth];
                for (to, &x) in to.chunks_exact_mut(panel).zip(from) {
                    to[place] = x;
                }
            }
        }
    });
}

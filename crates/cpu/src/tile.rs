//! The innermost loop of all products: a few rows by one panel of columns, in registers.
//!
//! `c[r, j] = start + Σ_k a[r, k] · b[k, j]`: for each entry one chain of multiply-adds along `k` in ascending order,
//! whatever the number of rows. Since a chain survives being stored to `c` and taken up again, results do not
//! depend on how callers block rows, columns or depth.

use half::{bf16, f16};

use super::coding::{Coding, Visit, widen};
use super::memory::LINE_BYTES;
use super::simd::Simd;

/// Keys of a chunk of attention, and entries from row to row of the weights over them.
pub(super) const CHUNK: usize = 64;

/// Operands of a tile of `ROWS` rows by up to `2 * LANES` columns.
pub(super) struct Tile {
    /// Length of the sums.
    pub(super) depth: usize,
    /// Rows of the left operand, in the layout of the [`TileFn`].
    pub(super) a: *const f32,
    /// For each `k` one row of `2 * LANES` stored entries.
    pub(super) b: *const u8,
    /// Bytes from row to row of `b`.
    pub(super) b_stride: usize,
    /// Output of the sums.
    pub(super) c: *mut f32,
    /// Entries from row to row of `c`.
    pub(super) c_stride: usize,
    /// Columns that `c` has, at most `2 * LANES`.
    pub(super) columns: usize,
    /// Initial value of the sums.
    pub(super) start: Start,
    /// Memory that will be read next: asked for step by step while this tile computes. Asked for all at once, lines would wait in a
    /// queue, and what is needed now behind them.
    pub(super) ahead: Ahead,
}

impl Tile {
    /// True where both halves of a panel are whole, and the columns of each.
    #[inline(always)]
    fn halves<S: Simd>(&self) -> (bool, [usize; 2]) {
        (self.columns == 2 * S::LANES, [self.columns.min(S::LANES), self.columns.saturating_sub(S::LANES)])
    }
}

/// Prefetches of a tile at each step of `k`.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    /// No prefetching.
    Nothing,
    /// A cache line, then the one so many bytes further on.
    Line(*const u8, usize),
    /// Two cache lines side by side, then those so many bytes further on.
    Lines(*const u8, usize),
}

impl Ahead {
    /// All of `bytes` from `from` on, in `steps` steps.
    pub(super) fn evenly(from: *const u8, bytes: usize, steps: usize) -> Ahead {
        let stride = bytes.div_ceil(steps.max(1));
        if stride > LINE_BYTES { Ahead::Lines(from, stride) } else { Ahead::Line(from, stride) }
    }
}

/// Initial value of the sums of a tile.
#[derive(Clone, Copy)]
pub(super) enum Start {
    /// Sums start at zero.
    Zero,
    /// One value for each column.
    Columns(*const f32),
    /// The contents of `c`.
    Kept,
    /// The contents of `c`, times one factor for each row.
    Scaled(*const f32),
}

/// Computes a tile.
///
/// # Safety
/// The processor has the instructions it was compiled for; `a` can be read for its rows and `depth`, `b` for `depth`
/// rows, and `c` written (and for [`Start::Kept`] and [`Start::Scaled`] read) for its rows and columns; what `start`
/// points to can be read.
pub(super) type TileFn = unsafe fn(&Tile);

/// The tiles compiled for one instruction set.
pub(super) trait TileSet {
    /// The most rows whose sums fit the registers.
    const MAX_ROWS: usize;
    /// The most rows whose sums fit the registers beside what widening quantised weights needs.
    const MAX_CODED_ROWS: usize;

    /// For `1..=MAX_ROWS` rows; `a` is packed, `[depth, rows]`.
    fn packed<P: Panel>(rows: usize) -> TileFn;

    /// For `1..=MAX_ROWS` rows; `a` is `[rows, CHUNK]`.
    fn over_chunk<P: Panel>(rows: usize) -> TileFn;

    /// For `1..=MAX_CODED_ROWS` rows; `a` is packed, `[depth, rows]`, and `b` quantised.
    fn coded<C: Coding>(rows: usize) -> TileFn;

    /// Widens quantised weights.
    fn widened<C: Coding>() -> WidenFn;
}

/// Widens so many rows of a panel, whole blocks of them.
///
/// # Safety
/// The processor has the instructions it was compiled for; the panel has these blocks, and as many rows of `2 * LANES` can be written.
pub(super) type WidenFn = unsafe fn(*const u8, usize, *mut f32);

/// Storage of a row of `b`.
pub(super) trait Panel {
    /// # Safety
    /// `2 * LANES` stored entries can be read.
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> [S::V; 2];
}

/// Entries in order.
pub(super) struct PanelF32;
/// Pairs: entry `i` beside entry `i + LANES`.
pub(super) struct PanelBf16;
/// Entries in order.
pub(super) struct PanelF16;

impl Panel for PanelF32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> [S::V; 2] {
        let from = from.cast::<f32>();
        // SAFETY: the caller's.
        unsafe { [simd.load(from), simd.load(from.add(S::LANES))] }
    }
}

impl Panel for PanelBf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> [S::V; 2] {
        // SAFETY: the caller's.
        unsafe { simd.load_bf16_pairs(from.cast::<bf16>()) }
    }
}

impl Panel for PanelF16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> [S::V; 2] {
        let from = from.cast::<f16>();
        // SAFETY: the caller's.
        unsafe { [simd.load_f16(from), simd.load_f16(from.add(S::LANES))] }
    }
}

/// A row of `2 * LANES` columns, or the first of them.
///
/// # Safety
/// The columns can be read.
#[inline(always)]
unsafe fn load_columns<S: Simd>(simd: S, from: *const f32, whole: bool, split: [usize; 2]) -> [S::V; 2] {
    // SAFETY: the caller's, with `split` the columns that each half has.
    unsafe {
        if whole {
            [simd.load(from), simd.load(from.add(S::LANES))]
        } else {
            [simd.load_first(from, split[0]), simd.load_first(from.wrapping_add(S::LANES), split[1])]
        }
    }
}

/// The sums of a tile before the first product.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
unsafe fn begin<S: Simd, const ROWS: usize>(simd: S, tile: &Tile) -> [[S::V; 2]; ROWS] {
    let mut sums = [[simd.splat(0.0); 2]; ROWS];
    let (whole, split) = tile.halves::<S>();
    match tile.start {
        Start::Zero => {}
        // SAFETY: the caller's.
        Start::Columns(columns) => sums = [unsafe { load_columns(simd, columns, whole, split) }; ROWS],
        Start::Kept => {
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's.
                *sum = unsafe { load_columns(simd, tile.c.wrapping_add(r * tile.c_stride), whole, split) };
            }
        }
        Start::Scaled(factors) => {
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's: one factor for each row.
                let (factor, kept) = unsafe {
                    let kept = load_columns(simd, tile.c.wrapping_add(r * tile.c_stride), whole, split);
                    (simd.splat(*factors.add(r)), kept)
                };
                *sum = [simd.mul(kept[0], factor), simd.mul(kept[1], factor)];
            }
        }
    }
    sums
}

/// Writes the sums of a tile.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
unsafe fn end<S: Simd, const ROWS: usize>(simd: S, tile: &Tile, sums: &[[S::V; 2]; ROWS]) {
    let (whole, split) = tile.halves::<S>();
    for (r, sum) in sums.iter().enumerate() {
        let to = tile.c.wrapping_add(r * tile.c_stride);
        // SAFETY: the caller's, with `split` the columns that each half has.
        unsafe {
            if whole {
                simd.store(to, sum[0]);
                simd.store(to.add(S::LANES), sum[1]);
            } else {
                simd.store_first(to, sum[0], split[0]);
                simd.store_first(to.wrapping_add(S::LANES), sum[1], split[1]);
            }
        }
    }
}

/// The body of every [`TileFn`] over plain numbers: entry `(r, k)` of `a` is at `r * A_ROW + k * A_DEPTH`.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
pub(super) unsafe fn compute<S: Simd, P: Panel, const ROWS: usize, const A_ROW: usize, const A_DEPTH: usize>(
    simd: S,
    tile: &Tile,
) {
    // SAFETY: the caller's.
    let mut sums = unsafe { begin::<S, ROWS>(simd, tile) };
    let (a, b) = (tile.a, tile.b);
    for k in 0..tile.depth {
        match tile.ahead {
            Ahead::Nothing => {}
            Ahead::Line(line, stride) => simd.prefetch(line.wrapping_add(k * stride)),
            Ahead::Lines(line, stride) => {
                simd.prefetch(line.wrapping_add(k * stride));
                simd.prefetch(line.wrapping_add(k * stride + LINE_BYTES));
            }
        }
        // SAFETY: the caller's: `a` and `b` have `depth` rows.
        unsafe {
            let columns = P::load(simd, b.wrapping_add(k * tile.b_stride));
            for (r, sum) in sums.iter_mut().enumerate() {
                let row = simd.splat(*a.add(r * A_ROW + k * A_DEPTH));
                sum[0] = simd.fma(row, columns[0], sum[0]);
                sum[1] = simd.fma(row, columns[1], sum[1]);
            }
        }
    }
    // SAFETY: the caller's.
    unsafe { end(simd, tile, &sums) };
}

/// The body of every [`TileFn`] over quantised weights, which are widened on their way: for so few rows that widening them once for
/// all tiles would cost more.
///
/// # Safety
/// As [`TileFn`]; `a` is packed, `[depth, ROWS]`, and `depth` is whole blocks.
#[inline(always)]
pub(super) unsafe fn compute_coded<S: Simd, C: Coding, const ROWS: usize>(simd: S, tile: &Tile) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = Sums { a: tile.a, sums: begin::<S, ROWS>(simd, tile) };
        widen::<S, C>(simd, tile.b, tile.depth, &mut sums);
        end(simd, tile, &sums.sums);
    }
}

/// Sums of products with the rows of `a`, which has as many as are visited.
struct Sums<S: Simd, const ROWS: usize> {
    a: *const f32,
    sums: [[S::V; 2]; ROWS],
}

impl<S: Simd, const ROWS: usize> Visit<S> for Sums<S, ROWS> {
    #[inline(always)]
    fn take(&mut self, simd: S, k: usize, weights: [S::V; 2]) {
        for (r, sum) in self.sums.iter_mut().enumerate() {
            // SAFETY: as this type says.
            let row = simd.splat(unsafe { *self.a.add(k * ROWS + r) });
            sum[0] = simd.fma(row, weights[0], sum[0]);
            sum[1] = simd.fma(row, weights[1], sum[1]);
        }
    }
}

/// Widens quantised weights into memory: the body of every [`WidenFn`].
///
/// # Safety
/// As [`WidenFn`].
#[inline(always)]
pub(super) unsafe fn widen_panel<S: Simd, C: Coding>(simd: S, from: *const u8, depth: usize, to: *mut f32) {
    // SAFETY: the caller's.
    unsafe { widen::<S, C>(simd, from, depth, &mut Wide(to)) };
}

/// Memory for as many rows of a panel as are visited.
struct Wide(*mut f32);

impl<S: Simd> Visit<S> for Wide {
    #[inline(always)]
    fn take(&mut self, simd: S, k: usize, weights: [S::V; 2]) {
        let to = self.0.wrapping_add(k * 2 * S::LANES);
        // SAFETY: as this type says.
        unsafe {
            simd.store(to, weights[0]);
            simd.store(to.add(S::LANES), weights[1]);
        }
    }
}

/// Writes the operand `a` of a packed tile, `[depth, rows]`, from `rows` rows, at most [`Simd::LANES`]: of row `r` entry `k`
/// is at `row(r) + k`, and is multiplied by `scale`. Whole vectors are written: `packed` has room for one more.
///
/// # Safety
/// Each row has `depth` entries.
#[inline(always)]
pub(super) unsafe fn pack_rows<S: Simd>(
    simd: S,
    rows: usize,
    depth: usize,
    scale: f32,
    row: impl Fn(usize) -> *const f32,
    packed: &mut [f32],
) {
    assert!(rows <= S::LANES && packed.len() + rows >= rows * depth + S::LANES);
    let whole = depth - depth % S::LANES;
    let factor = simd.splat(scale);
    for k in (0..whole).step_by(S::LANES) {
        let mut square = simd.square();
        for (r, v) in square.as_mut().iter_mut().enumerate().take(rows) {
            // SAFETY: the caller's.
            *v = unsafe { simd.mul(simd.load(row(r).add(k)), factor) };
        }
        for (i, &v) in simd.transpose(square).as_ref().iter().enumerate() {
            // SAFETY: the lanes beyond `rows` are overwritten by the next step, or are beyond the last entry, where the
            // assertion has left room.
            unsafe { simd.store(packed.as_mut_ptr().add((k + i) * rows), v) };
        }
    }
    for k in whole..depth {
        for r in 0..rows {
            // SAFETY: the caller's.
            packed[k * rows + r] = unsafe { *row(r).add(k) } * scale;
        }
    }
}

/// Compiles [`compute`] for one instruction set and each number of rows.
macro_rules! tiles {
    ($simd:ty, $value:expr, [$($features:literal)?], $($rows:literal)*, coded $($coded:literal)*) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn tile<
            P: $crate::tile::Panel,
            const ROWS: usize,
            const A_ROW: usize,
            const A_DEPTH: usize,
        >(tile: &$crate::tile::Tile) {
            // SAFETY: the caller's.
            unsafe { $crate::tile::compute::<$simd, P, ROWS, A_ROW, A_DEPTH>($value, tile) }
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn coded_tile<C: $crate::coding::Coding, const ROWS: usize>(tile: &$crate::tile::Tile) {
            // SAFETY: the caller's.
            unsafe { $crate::tile::compute_coded::<$simd, C, ROWS>($value, tile) }
        }

        $(#[target_feature(enable = $features)])?
        unsafe fn widen_panel<C: $crate::coding::Coding>(from: *const u8, depth: usize, to: *mut f32) {
            // SAFETY: the caller's.
            unsafe { $crate::tile::widen_panel::<$simd, C>($value, from, depth, to) }
        }

        impl $crate::tile::TileSet for $simd {
            const MAX_ROWS: usize = [$($rows),*].len();
            const MAX_CODED_ROWS: usize = [$($coded),*].len();

            fn packed<P: $crate::tile::Panel>(rows: usize) -> $crate::tile::TileFn {
                match rows {
                    $($rows => tile::<P, $rows, 1, $rows>,)*
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }

            fn over_chunk<P: $crate::tile::Panel>(rows: usize) -> $crate::tile::TileFn {
                use $crate::tile::CHUNK;
                match rows {
                    $($rows => tile::<P, $rows, CHUNK, 1>,)*
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }

            fn coded<C: $crate::coding::Coding>(rows: usize) -> $crate::tile::TileFn {
                match rows {
                    $($coded => coded_tile::<C, $coded>,)*
                    _ => unreachable!("a tile of {rows} rows over quantised weights"),
                }
            }

            fn widened<C: $crate::coding::Coding>() -> $crate::tile::WidenFn {
                widen_panel::<C>
            }
        }
    };
}
pub(super) use tiles;

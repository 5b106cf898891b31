//! `y = x · Wᵀ + bias`, blocked for caches and registers (GotoBLAS: Goto and van de Geijn, 2008).
//!
//! Rows are taken in blocks small enough that a block of `x` stays in the second-level cache for a stretch of depth;
//! a thread packs it once, then passes over panels of weights, each panel over all tiles of rows. So weights are
//! streamed once a block, and while one panel is computed on, the next is asked for: with few rows memory never
//! waits, with many rows the multipliers never do. Threads claim groups of panels, first of blocks of their own and
//! then of each other's.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::memory::{Parts, Scratch};
use flashjob_block_format::BlockFormat;

use super::coding::{Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
use super::packed::{PanelRef, Storage};
use super::simd::{Kernel, Simd, dispatch};
use super::tile::{Ahead, PanelBf16, PanelF16, PanelF32, Start, Tile, TileFn, WidenFn, pack_rows};
use super::{PackedMatrix, Pool};

/// Entries of `x` that one pass keeps in the second-level cache (256 KiB of the 1 MiB or more of the cores meant).
const BLOCK_ENTRIES: usize = 64 << 10;

/// The longest stretch of depth of one pass: with two vectors a row, at most 128 KiB of a panel.
const LONGEST_DEPTH: usize = 1024;

/// Blocks of rows that one job of the pool covers at most.
const MOST_BLOCKS: usize = 64;

/// Rows of a tile from which on the processor's own prefetching is not enough: it follows what is read, and with so
/// many multiplications between two reads it follows too late. With fewer rows it does better alone.
const ROWS_TO_ASK_AHEAD: usize = 6;

/// `y[r, o] = bias[o] + Σ_k x[r, k] · w[o, k]`, accumulated in f32 along `k` in one fixed order.
///
/// `x` is `[rows, in]`, `y` is `[rows, out]`, both row-major.
///
/// # Panics
/// If a length does not match.
pub fn matmul(pool: &Pool, x: &[f32], rows: usize, w: &PackedMatrix, bias: Option<&[f32]>, y: &mut [f32]) {
    let (out, in_) = (w.out(), w.in_());
    assert_eq!(x.len(), rows * in_, "x of a [{rows}, {in_}] × [{in_}, {out}] product");
    assert_eq!(y.len(), rows * out, "y of a [{rows}, {in_}] × [{in_}, {out}] product");
    assert!(bias.is_none_or(|bias| bias.len() == out), "bias of a product of {out} columns");
    if y.is_empty() {
        return;
    }
    dispatch(w.isa(), Product { pool, x, rows, w, bias, y });
}

/// The arguments of [`matmul`].
struct Product<'a> {
    pool: &'a Pool,
    x: &'a [f32],
    rows: usize,
    w: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl Kernel for Product<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        multiply(simd, self);
    }
}

/// Evaluates `$of` with `$coding` the type of a block format.
macro_rules! by_format {
    ($format:expr, $coding:ident => $of:expr) => {
        by_format!(@ $format, $coding, $of, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K)
    };
    (@ $format:expr, $coding:ident, $of:expr, $($name:ident)*) => {
        match $format {
            $(BlockFormat::$name => {
                type $coding = $name;
                $of
            })*
        }
    };
}

/// The tile of `rows` rows by a panel in `storage`.
fn tile_of<S: Simd>(storage: Storage, rows: usize) -> TileFn {
    match storage {
        Storage::F32 => S::packed::<PanelF32>(rows),
        Storage::Bf16 => S::packed::<PanelBf16>(rows),
        Storage::F16 => S::packed::<PanelF16>(rows),
        Storage::Blocks(format) => by_format!(format, C => S::coded::<C>(rows)),
    }
}

fn widening_of<S: Simd>(format: BlockFormat) -> WidenFn {
    by_format!(format, C => S::widened::<C>())
}

/// Division of one product among threads, which never changes the result.
struct Plan<'a> {
    x: &'a [f32],
    w: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    y: Parts<'a, f32>,
    /// Tiles of rows in all, of which each has `rows / tiles` rows or one more.
    tiles: usize,
    rows: usize,
    /// Tiles of a block.
    block: usize,
    /// Depth of a pass.
    depth: usize,
    /// Quantised panels are widened once for all tiles of a block.
    widens: bool,
    threads: usize,
}

fn multiply<S: Simd>(simd: S, product: Product<'_>) {
    let Product { pool, x, rows, w, bias, y } = product;
    // Whole blocks of each format.
    let unit = w.storages().map(Storage::block_len).max().unwrap_or(1);
    let widens = unit > 1 && rows > S::MAX_CODED_ROWS;
    let passes = w.in_().div_ceil(LONGEST_DEPTH).max(1);
    let depth = w.in_().div_ceil(passes).max(1).next_multiple_of(unit);
    let tiles = rows.div_ceil(S::MAX_ROWS);
    let most = (BLOCK_ENTRIES / (depth * S::MAX_ROWS)).max(1);
    // As few blocks as fit the cache, rounded up so that each thread has as many as the others.
    let mut blocks = tiles.div_ceil(most);
    if blocks > 1 {
        blocks = blocks.next_multiple_of(pool.threads()).min(tiles);
    }
    let block = tiles.div_ceil(blocks);
    let plan = Plan { x, w, bias, y: Parts::new(y), tiles, rows, block, depth, widens, threads: pool.threads() };
    let blocks = tiles.div_ceil(block);
    for first in (0..blocks).step_by(MOST_BLOCKS) {
        let count = MOST_BLOCKS.min(blocks - first);
        let claims: [AtomicUsize; MOST_BLOCKS] = [const { AtomicUsize::new(0) }; MOST_BLOCKS];
        let claims = &claims[..count];
        pool.participate(count * w.panels(), &|thread, scratch| {
            let own = thread % pool.threads() * count / pool.threads();
            for i in 0..count {
                let i = (own + i) % count;
                plan.work(simd, first + i, &claims[i], scratch);
            }
        });
    }
}

impl Plan<'_> {
    /// The first row of a tile: rows are spread evenly, so that none is much smaller than the others.
    #[inline(always)]
    fn first_row(&self, tile: usize) -> usize {
        tile * self.rows / self.tiles
    }

    /// The next panels of a block: many at first, fewer and fewer towards the end, so that all threads end together.
    #[inline(always)]
    fn claim(&self, claims: &AtomicUsize) -> Range<usize> {
        let panels = self.w.panels();
        let mut first = claims.load(Ordering::Relaxed);
        while first < panels {
            let count = ((panels - first) / (2 * self.threads)).max(1);
            match claims.compare_exchange_weak(first, first + count, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return first..first + count,
                Err(now) => first = now,
            }
        }
        panels..panels
    }

    /// Computes those panels of one block of rows that no other thread has claimed.
    fn work<S: Simd>(&self, simd: S, block: usize, claims: &AtomicUsize, scratch: &mut Scratch) {
        let mut panels = self.claim(claims);
        if panels.is_empty() {
            return;
        }
        let tiles = block * self.block..((block + 1) * self.block).min(self.tiles);
        let (in_, first) = (self.w.in_(), self.first_row(tiles.start));
        let rows = self.first_row(tiles.end) - first;
        // Packing writes whole vectors: up to one beyond the last entry.
        let packed_len = (rows * in_ + S::LANES).next_multiple_of(S::LANES);
        let wide_len = if self.widens { self.depth * 2 * S::LANES } else { 0 };
        let (packed, wide) = scratch.floats(packed_len + wide_len).split_at_mut(packed_len);
        for tile in tiles.clone() {
            let row = self.first_row(tile);
            let rows = self.first_row(tile + 1) - row;
            let (x, packed) = (&self.x[row * in_..(row + rows) * in_], &mut packed[(row - first) * in_..]);
            if rows == 1 {
                packed[..in_].copy_from_slice(x);
            } else {
                dispatch(self.w.isa(), PackRows { x, rows, depth: in_, packed });
            }
        }
        while !panels.is_empty() {
            self.group(simd, tiles.clone(), panels, claims, packed, wide);
            panels = self.claim(claims);
        }
    }

    /// Computes `panels` for the rows of `tiles`, packed in `packed`; `wide` has room for a pass of a quantised panel.
    fn group<S: Simd>(
        &self,
        _simd: S,
        tiles: Range<usize>,
        panels: Range<usize>,
        claims: &AtomicUsize,
        packed: &[f32],
        wide: &mut [f32],
    ) {
        let (in_, out, width) = (self.w.in_(), self.w.out(), 2 * S::LANES);
        let first = self.first_row(tiles.start);
        let mut k = 0;
        loop {
            let depth = self.depth.min(in_ - k);
            let last_pass = k + depth >= in_;
            for panel in panels.clone() {
                let PanelRef { storage, first: column, rows: columns, .. } = self.w.panel(panel);
                let at = |panel: usize, k: usize| {
                    let panel = self.w.panel(panel);
                    panel.start.wrapping_add(width * panel.storage.column_bytes(k))
                };
                let ahead = if panel + 1 < panels.end {
                    at(panel + 1, k)
                } else if last_pass {
                    // The next panel that anyone claims, most likely this thread.
                    at(claims.load(Ordering::Relaxed).min(self.w.panels() - 1), 0)
                } else {
                    at(panels.start, k + depth)
                };
                let start = match self.bias {
                    _ if k > 0 => Start::Kept,
                    Some(bias) => Start::Columns(bias[column..column + columns].as_ptr()),
                    None => Start::Zero,
                };
                let mut b = at(panel, k);
                let mut b_storage = storage;
                if let Storage::Blocks(format) = storage
                    && self.widens
                {
                    assert!(wide.len() >= depth * width);
                    // SAFETY: the simd token proves the instructions; the panel has these blocks, and `wide` has room.
                    unsafe { widening_of::<S>(format)(b, depth, wide.as_mut_ptr()) };
                    (b, b_storage) = (wide.as_ptr().cast(), Storage::F32);
                }
                // Each tile asks for its share of what comes next.
                let share = (width * storage.column_bytes(depth)).div_ceil(tiles.len());
                for (index, tile) in tiles.clone().enumerate() {
                    let row = self.first_row(tile);
                    let rows = self.first_row(tile + 1) - row;
                    let c = self.y.pointer(row * out + column..(row + rows - 1) * out + column + columns);
                    let operands = Tile {
                        depth,
                        a: packed[(row - first) * in_ + k * rows..].as_ptr(),
                        b,
                        b_stride: width * b_storage.column_bytes(1),
                        c,
                        c_stride: out,
                        columns,
                        start,
                        ahead: match self.rows < ROWS_TO_ASK_AHEAD {
                            true => Ahead::Nothing,
                            false => Ahead::evenly(ahead.wrapping_add(index * share), share, depth),
                        },
                    };
                    // SAFETY: the simd token proves the instructions; operands are in bounds as computed here, and these
                    // rows and columns of `y` are this group's alone.
                    unsafe { tile_of::<S>(b_storage, rows)(&operands) };
                }
            }
            k += depth;
            if last_pass {
                break;
            }
        }
    }
}

/// `x`, `[rows, depth]`, becomes `packed`, `[depth, rows]`.
struct PackRows<'a> {
    x: &'a [f32],
    rows: usize,
    depth: usize,
    packed: &'a mut [f32],
}

impl Kernel for PackRows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let PackRows { x, rows, depth, packed } = self;
        assert_eq!(x.len(), rows * depth);
        // SAFETY: each row is inside `x`.
        unsafe { pack_rows(simd, rows, depth, 1.0, |r| x.as_ptr().add(r * depth), packed) };
    }
}

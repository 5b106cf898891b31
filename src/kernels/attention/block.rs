//! A block of queries while it passes over chunks of keys: the state of its rows, and the chunk in the form in which
//! tiles read it.

use std::ops::Range;

use super::super::cache::Stored;
use super::super::memory::{Parts, Scratch};
use super::super::simd::Simd;
use super::super::tile::{PanelF32, Start, Tile};
use super::plan::Unit;
use super::row::{Running, merge, weigh};
use super::{CHUNK, PagedAttention};

/// The widest two vectors of any instruction set: rows of values are padded to whole panels of it.
const WIDEST_PANEL: usize = 32;

/// Floats of a cache line.
const LINE_FLOATS: usize = 16;

/// Floats in which one span of `rows` rows is saved: of each row its values, the largest score and the sum.
pub(super) fn saved_len(rows: usize, head_dim: usize) -> usize {
    rows * (padded(head_dim) + 2)
}

fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(WIDEST_PANEL)
}

/// Rows are ordered by KV head, then token, then head of the group.
pub(super) struct Block<'a, S> {
    simd: S,
    head_dim: usize,
    /// Rows of each KV head.
    rows: usize,
    /// Query heads of a KV head.
    group: usize,
    /// For each KV head, tile by tile, `[head_dim, rows of the tile]`: queries, times the scale.
    queries: &'a mut [f32],
    /// `[head_dim, CHUNK]`.
    keys: &'a mut [f32],
    /// `[CHUNK, padded head_dim]`.
    values: &'a mut [f32],
    /// `[rows, CHUNK]`: scores, then weights.
    scores: &'a mut [f32],
    /// `[rows]`: what earlier sums are multiplied with.
    factors: &'a mut [f32],
    /// `[all rows, padded head_dim]`: weighted values of this span.
    span_values: &'a mut [f32],
    /// `[all rows, 2]`: largest score and sum of this span.
    span: &'a mut [f32],
    /// As `span_values`, of all spans before.
    total_values: &'a mut [f32],
    /// As `span`, of all spans before.
    total: &'a mut [f32],
}

/// Where in the caches the tokens of the chunk from key `first` on lie, and which of the chunk `unit` looks at; 0 is the
/// place of the others.
#[inline(always)]
fn places(args: &PagedAttention<'_>, unit: &Unit, first: usize) -> ([usize; CHUNK], Range<usize>) {
    let keys = first.max(unit.keys.start)..(first + CHUNK).min(unit.keys.end);
    let mut offsets = [0; CHUNK];
    let blocks = &args.block_table[unit.sequence * args.max_blocks..][..args.max_blocks];
    let width = args.shape.cache_width();
    for key in keys.clone() {
        let (block, offset) = (blocks[key / args.page] as usize, key % args.page);
        offsets[key - first] = (block * args.page + offset) * width;
    }
    (offsets, keys.start - first..keys.end - first)
}

/// Asks for the `d` entries from `offset` on: tokens lie apart from each other, so that the processor does not see by
/// itself what comes next.
#[inline(always)]
fn ask_for_head<S: Simd, T>(simd: S, cache: &[T], offset: usize, d: usize) {
    let start = cache.as_ptr().wrapping_add(offset).cast::<u8>();
    for byte in (0..d * size_of::<T>()).step_by(64) {
        simd.prefetch(start.wrapping_add(byte));
    }
}

impl<'a, S: Simd> Block<'a, S> {
    #[inline(always)]
    pub(super) fn new(simd: S, args: &PagedAttention<'_>, unit: &Unit, scratch: &'a mut Scratch) -> Self {
        let (d, group) = (args.shape.head_dim, args.shape.heads / args.shape.kv_heads);
        let rows = unit.tokens * group;
        let all = rows * unit.kv_heads.len();
        let width = padded(d);
        let sizes = [all * d, d * CHUNK, CHUNK * width, rows * CHUNK, rows, all * width, all * 2, all * width, all * 2];
        // Each begins at a cache line.
        let mut rest = scratch.floats(sizes.iter().map(|size| size.next_multiple_of(LINE_FLOATS)).sum());
        let mut parts = sizes.map(|size| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(size.next_multiple_of(LINE_FLOATS));
            rest = after;
            &mut part[..size]
        });
        let mut take = |index: usize| std::mem::take(&mut parts[index]);
        let block = Block {
            simd,
            head_dim: d,
            rows,
            group,
            queries: take(0),
            keys: take(1),
            values: take(2),
            scores: take(3),
            factors: take(4),
            span_values: take(5),
            span: take(6),
            total_values: take(7),
            total: take(8),
        };
        if width > d {
            // The padding is multiplied, though never looked at.
            block.values.fill(0.0);
        }
        block
    }

    /// Nothing seen so far.
    #[inline(always)]
    pub(super) fn forget(&mut self) {
        for total in self.total.chunks_exact_mut(2) {
            put(total, Running::NONE);
        }
    }

    /// Tiles into which `rows` rows are cut: their number, then the first row of the `index`-th.
    #[inline(always)]
    fn tiles(rows: usize) -> impl Iterator<Item = Range<usize>> {
        let tiles = rows.div_ceil(S::MAX_ROWS);
        (0..tiles).map(move |tile| tile * rows / tiles..(tile + 1) * rows / tiles)
    }

    #[inline(always)]
    pub(super) fn load_queries(&mut self, args: &PagedAttention<'_>, unit: &Unit) {
        self.forget();
        let d = self.head_dim;
        for (index, kv_head) in unit.kv_heads.clone().enumerate() {
            let base = index * self.rows * d;
            for tile in Self::tiles(self.rows) {
                let to = &mut self.queries[base + tile.start * d..base + tile.end * d];
                for (r, row) in tile.clone().enumerate() {
                    let (token, head) = (unit.first_token + row / self.group, kv_head * self.group + row % self.group);
                    let q = &args.q[token * args.q_stride + head * d..][..d];
                    for (i, x) in q.iter().enumerate() {
                        to[i * tile.len() + r] = x * args.scale;
                    }
                }
            }
        }
    }

    #[inline(always)]
    pub(super) fn start_span(&mut self) {
        for span in self.span.chunks_exact_mut(2) {
            put(span, Running::NONE);
        }
        self.span_values.fill(0.0);
    }

    /// Takes in the chunk of keys that begins at key `first`, and asks for the one that will most likely follow.
    #[inline(always)]
    pub(super) fn chunk<T: Stored>(
        &mut self,
        args: &PagedAttention<'_>,
        unit: &Unit,
        k_cache: &[T],
        v_cache: &[T],
        first: usize,
        ahead: Option<(&Unit, usize)>,
    ) {
        let (offsets, within) = places(args, unit, first);
        let (offsets_ahead, heads_ahead) = match ahead {
            Some((unit, first)) => (places(args, unit, first).0, unit.kv_heads.clone()),
            None => (offsets, unit.kv_heads.clone()),
        };
        for (index, kv_head) in unit.kv_heads.clone().enumerate() {
            let at = kv_head * self.head_dim;
            let at_ahead = (heads_ahead.start + index).min(heads_ahead.end - 1) * self.head_dim;
            let next = offsets_ahead.map(|offset| offset + at_ahead);
            self.turn_keys(k_cache, &offsets, at, within.clone(), &next);
            self.copy_values(v_cache, &offsets, at, within.clone(), &next);
            self.score(index, within.clone());
            // Queries that see the same keys of this chunk go together: all of them, but at the edges.
            let mut token = 0;
            while token < unit.tokens {
                let seen_by = |token: usize| {
                    let seen = args.seen(unit.first_position + token);
                    seen.start.clamp(first, first + CHUNK) - first..seen.end.clamp(first, first + CHUNK) - first
                };
                let seen = seen_by(token);
                let begin = token;
                while token < unit.tokens && seen_by(token) == seen {
                    token += 1;
                }
                if !seen.is_empty() {
                    self.weigh_and_sum(index, begin * self.group..token * self.group, seen, args.softcap);
                }
            }
        }
    }

    /// Writes `keys`: for each entry of a head the keys of this chunk side by side, widened; zeros where there is none.
    #[inline(always)]
    fn turn_keys<T: Stored>(
        &mut self,
        cache: &[T],
        offsets: &[usize; CHUNK],
        at: usize,
        within: Range<usize>,
        ahead: &[usize; CHUNK],
    ) {
        let (simd, d) = (self.simd, self.head_dim);
        let whole = d - d % S::LANES;
        // Heads of the next chunk asked for at each square, so that all are by the end.
        let at_a_time = S::LANES.div_ceil((whole / S::LANES).max(1));
        let mut group = within.start / S::LANES * S::LANES;
        let entries = cache.as_ptr();
        while group < within.end {
            let all_there = within.start <= group && group + S::LANES <= within.end;
            for i in (0..whole).step_by(S::LANES) {
                let asked = group + (i / S::LANES * at_a_time).min(S::LANES);
                for &offset in &ahead[asked..(asked + at_a_time).min(group + S::LANES)] {
                    ask_for_head(simd, cache, offset, d);
                }
                let mut square = simd.square();
                for (&offset, v) in offsets[group..group + S::LANES].iter().zip(square.as_mut()) {
                    // SAFETY: a vector of a head of a token; `PagedAttention::check` has held its block. Where there is no
                    // token, the offset is 0, which is one, too.
                    *v = unsafe { T::load(simd, entries.add(offset + at + i)) };
                }
                let mut turned = simd.transpose(square);
                if !all_there {
                    let (first, end) = (within.start.max(group) - group, within.end.min(group + S::LANES) - group);
                    for v in turned.as_mut() {
                        *v = simd.within(*v, first, end, simd.splat(0.0));
                    }
                }
                let to = self.keys[i * CHUNK + group..(i + S::LANES - 1) * CHUNK + group + S::LANES].as_mut_ptr();
                for (j, v) in turned.as_ref().iter().enumerate() {
                    // SAFETY: inside the slice above.
                    unsafe { simd.store(to.add(j * CHUNK), *v) };
                }
            }
            for i in whole..d {
                for key in group..group + S::LANES {
                    let entry = if within.contains(&key) { cache[offsets[key] + at + i].widen() } else { 0.0 };
                    self.keys[i * CHUNK + key] = entry;
                }
            }
            group += S::LANES;
        }
    }

    /// Writes `values`, widened, for the keys `within` this chunk.
    #[inline(always)]
    fn copy_values<T: Stored>(
        &mut self,
        cache: &[T],
        offsets: &[usize; CHUNK],
        at: usize,
        within: Range<usize>,
        ahead: &[usize; CHUNK],
    ) {
        let (simd, d, width) = (self.simd, self.head_dim, padded(self.head_dim));
        let whole = d - d % S::LANES;
        for key in within {
            ask_for_head(simd, cache, ahead[key], d);
            let from = &cache[offsets[key] + at..][..d];
            let to = &mut self.values[key * width..][..d];
            for i in (0..whole).step_by(S::LANES) {
                // SAFETY: `LANES` entries from `i` on are inside both.
                unsafe { simd.store(to.as_mut_ptr().add(i), T::load(simd, from.as_ptr().add(i))) };
            }
            for i in whole..d {
                to[i] = from[i].widen();
            }
        }
    }

    /// Writes `scores`: queries of one KV head times the keys of this chunk.
    #[inline(always)]
    fn score(&mut self, index: usize, within: Range<usize>) {
        let (d, panel) = (self.head_dim, 2 * S::LANES);
        let queries = &self.queries[index * self.rows * d..][..self.rows * d];
        for column in (within.start / panel * panel..within.end).step_by(panel) {
            for rows in Self::tiles(self.rows) {
                let tile = Tile {
                    depth: d,
                    a: queries[rows.start * d..].as_ptr(),
                    b: self.keys[column..].as_ptr().cast(),
                    b_stride: CHUNK * size_of::<f32>(),
                    c: self.scores[rows.start * CHUNK + column..].as_mut_ptr(),
                    c_stride: CHUNK,
                    columns: panel,
                    start: Start::Zero,
                    ahead: std::ptr::null(),
                    lines_ahead: 0,
                    steps_ahead: usize::MAX,
                };
                // SAFETY: the simd token proves the instructions; operands have the sizes that `new` gave them.
                unsafe { S::packed::<PanelF32>(rows.len())(&tile) };
            }
        }
    }

    /// Softmax of `rows` of one KV head over the keys `seen` of this chunk, and their values by those weights.
    #[inline(always)]
    fn weigh_and_sum(&mut self, index: usize, rows: Range<usize>, seen: Range<usize>, softcap: Option<f32>) {
        let first = index * self.rows;
        let width = padded(self.head_dim);
        for row in rows.clone() {
            let (scores, _) = self.scores[row * CHUNK..].as_chunks_mut::<CHUNK>();
            let state = &mut self.span[2 * (first + row)..][..2];
            let mut running = get(state);
            self.factors[row] = weigh(self.simd, &mut scores[0], seen.clone(), softcap, &mut running);
            put(state, running);
        }
        for tile in Self::tiles(rows.len()) {
            let row = rows.start + tile.start;
            for column in (0..self.head_dim).step_by(2 * S::LANES) {
                let operands = Tile {
                    depth: seen.len(),
                    a: self.scores[row * CHUNK + seen.start..].as_ptr(),
                    b: self.values[seen.start * width + column..].as_ptr().cast(),
                    b_stride: width * size_of::<f32>(),
                    c: self.span_values[(first + row) * width + column..].as_mut_ptr(),
                    c_stride: width,
                    columns: 2 * S::LANES,
                    start: Start::Scaled(self.factors[row..].as_ptr()),
                    ahead: std::ptr::null(),
                    lines_ahead: 0,
                    steps_ahead: usize::MAX,
                };
                // SAFETY: the simd token proves the instructions; operands have the sizes that `new` gave them, and
                // padding to whole panels makes room for the last one.
                unsafe { S::over_chunk(tile.len())(&operands) };
            }
        }
    }

    /// Adds this span to those before.
    #[inline(always)]
    pub(super) fn merge_span(&mut self) {
        let width = padded(self.head_dim);
        let all = self.span.chunks_exact(2).zip(self.span_values.chunks_exact(width));
        let totals = self.total.chunks_exact_mut(2).zip(self.total_values.chunks_exact_mut(width));
        for ((span, values), (total, total_values)) in all.zip(totals) {
            let mut merged = get(total);
            merge(self.simd, &mut merged, total_values, get(span), values);
            put(total, merged);
        }
    }

    /// How long [`Block::save`]'s result is.
    #[inline(always)]
    pub(super) fn saved_len(&self) -> usize {
        self.span.len() + self.span_values.len()
    }

    #[inline(always)]
    pub(super) fn save(&self, to: &mut [f32]) {
        let (span, values) = to.split_at_mut(self.span.len());
        span.copy_from_slice(self.span);
        values.copy_from_slice(self.span_values);
    }

    #[inline(always)]
    pub(super) fn restore(&mut self, from: &[f32]) {
        let (span, values) = from.split_at(self.span.len());
        self.span.copy_from_slice(span);
        self.span_values.copy_from_slice(values);
    }

    /// Writes the rows of `out`.
    #[inline(always)]
    pub(super) fn finish(&self, args: &PagedAttention<'_>, unit: &Unit, out: Parts<'_, f32>) {
        let (d, width) = (self.head_dim, padded(self.head_dim));
        for (index, kv_head) in unit.kv_heads.clone().enumerate() {
            for row in 0..self.rows {
                let (token, head) = (unit.first_token + row / self.group, kv_head * self.group + row % self.group);
                let at = (token * args.shape.heads + head) * d;
                // SAFETY: these rows are this unit's alone.
                let out = unsafe { out.part(at..at + d) };
                let row = index * self.rows + row;
                let factor = 1.0 / self.total[2 * row + 1];
                for (out, x) in out.iter_mut().zip(&self.total_values[row * width..]) {
                    *out = x * factor;
                }
            }
        }
    }
}

#[inline(always)]
fn get(state: &[f32]) -> Running {
    Running { largest: state[0], sum: state[1] }
}

#[inline(always)]
fn put(state: &mut [f32], running: Running) {
    state.copy_from_slice(&[running.largest, running.sum]);
}

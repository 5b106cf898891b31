//! A block of queries while it passes over chunks of keys: the state of its rows, and the two products of a chunk.

use std::ops::Range;

use super::super::cache::{CacheLayout, Stored};
use super::super::memory::{LINE_BYTES, Parts, Scratch};
use super::super::simd::Simd;
use super::super::tile::{Ahead, Start, Tile, pack_rows};
use super::kv_blocks::KvBlocks;
use super::plan::Unit;
use super::row::{Running, merge, weigh};
use super::{CHUNK, PagedAttention};

/// Floats of a cache line.
const LINE_FLOATS: usize = LINE_BYTES / size_of::<f32>();

/// Floats in which one span of `rows` rows is saved: of each row its values, the largest score and the sum.
pub(super) fn saved_len(rows: usize, head_dim: usize) -> usize {
    rows * (padded(head_dim) + 2)
}

/// Rows of values are padded to whole panels of any instruction set.
fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(CacheLayout::BLOCK_SIZE_STEP)
}

/// Rows are ordered by KV head, then token, then head of the group.
pub(super) struct Block<'a, S> {
    simd: S,
    head_dim: usize,
    /// Rows of each KV head.
    rows: usize,
    /// Query heads of a KV head.
    group: usize,
    /// For each KV head, tile by tile, `[head_dim, rows of the tile]`: queries, times the scale; then room for a vector.
    queries: &'a mut [f32],
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

impl<'a, S: Simd> Block<'a, S> {
    #[inline(always)]
    pub(super) fn new(simd: S, args: &PagedAttention<'_>, unit: &Unit, scratch: &'a mut Scratch) -> Self {
        let shape = args.layout.shape();
        let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let rows = unit.tokens * group;
        let all = rows * unit.kv_heads.len();
        let width = padded(d);
        let sizes = [all * d + S::LANES, rows * CHUNK, rows, all * width, all * 2, all * width, all * 2];
        // Each begins at a cache line.
        // One buffer for all: a thread's scratch is kept between calls, and grows to the largest unit once.
        let mut rest = scratch.floats(sizes.iter().map(|size| size.next_multiple_of(LINE_FLOATS)).sum());
        let mut parts = sizes.map(|size| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(size.next_multiple_of(LINE_FLOATS));
            rest = after;
            &mut part[..size]
        });
        let mut take = |index: usize| std::mem::take(&mut parts[index]);
        Block {
            simd,
            head_dim: d,
            rows,
            group,
            queries: take(0),
            scores: take(1),
            factors: take(2),
            span_values: take(3),
            span: take(4),
            total_values: take(5),
            total: take(6),
        }
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
        // Packed once, in the order in which tiles read them, with the scale folded in: every chunk of keys reuses them.
        for (index, kv_head) in unit.kv_heads.clone().enumerate() {
            let base = index * self.rows * d;
            for tile in Self::tiles(self.rows) {
                let query = |r| {
                    let row = tile.start + r;
                    let (token, head) = (unit.first_token + row / self.group, kv_head * self.group + row % self.group);
                    args.q[token * args.q_stride + head * d..][..d].as_ptr()
                };
                let to = &mut self.queries[base + tile.start * d..];
                // SAFETY: each query has `d` entries.
                unsafe { pack_rows(self.simd, tile.len(), d, args.scale, query, to) };
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
        let (group, kv_blocks) = (self.group, KvBlocks::of(args, unit, first));
        // Blocks are scattered over the cache: the processor's own prefetcher cannot know which comes next, the block table does.
        let after = ahead.map(|(unit, first)| (KvBlocks::of(args, unit, first), unit.kv_heads.start));
        let seen = |token: usize| {
            let seen = args.seen(unit.first_position + token);
            seen.start.clamp(first, first + CHUNK) - first..seen.end.clamp(first, first + CHUNK) - first
        };
        // Later queries see keys further on: those that see any of this chunk follow each other.
        let blind = |token: &usize| seen(*token).is_empty();
        let begin = (0..unit.tokens).take_while(blind).count();
        let end = unit.tokens - (begin..unit.tokens).rev().take_while(blind).count();
        for (index, kv_head) in unit.kv_heads.clone().enumerate() {
            let next = match kv_head + 1 < unit.kv_heads.end {
                true => (kv_blocks, kv_head + 1),
                false => after.unwrap_or((kv_blocks, kv_head)),
            };
            let head = ChunkHead { layout: args.layout, index, kv_head, kv_blocks, next };
            next.0.ask_for_what_follows(self.simd, args.layout, next.1, &kv_blocks, k_cache, v_cache);
            // Scores of 64 keys stay in the first-level cache until the values have been weighted with them.
            self.score(&head, k_cache);
            for token in begin..end {
                for row in token * group..(token + 1) * group {
                    self.weigh(index, row, seen(token), args.softcap);
                }
            }
            for tile in Self::tiles((end - begin) * group) {
                let rows = begin * group + tile.start..begin * group + tile.end;
                self.sum_values(&head, rows, |row| seen(row / group), v_cache);
            }
        }
    }

    /// Writes `scores`: queries of one KV head times the keys of this chunk.
    #[inline(always)]
    fn score<T: Stored>(&mut self, head: &ChunkHead, k_cache: &[T]) {
        let (d, panel) = (self.head_dim, 2 * S::LANES);
        let queries = &self.queries[head.index * self.rows * d..];
        let (within, (next, next_head)) = (head.kv_blocks.within(), &head.next);
        for column in (within.start / panel * panel..within.end).step_by(panel) {
            let b = head.kv_blocks.key(head.layout, head.kv_head, column);
            for rows in Self::tiles(self.rows) {
                // The first of many tiles asks for all.
                let ahead = match rows.start == 0 && next.within().contains(&column) {
                    true => next_rows::<S, T>(k_cache, next.key(head.layout, *next_head, column)),
                    false => Ahead::Nothing,
                };
                let tile = Tile {
                    depth: d,
                    a: queries[rows.start * d..].as_ptr(),
                    b: k_cache[b..b + d * panel].as_ptr().cast(),
                    b_stride: panel * size_of::<T>(),
                    c: self.scores[rows.start * CHUNK + column..].as_mut_ptr(),
                    c_stride: CHUNK,
                    columns: panel,
                    start: Start::Zero,
                    ahead,
                };
                // SAFETY: the simd token proves the instructions; operands have the sizes that `new` gave them, and `b` is a
                // panel.
                unsafe { S::packed::<T::Panel>(rows.len())(&tile) };
            }
        }
    }

    /// Softmax of a row of one KV head over the keys `seen` of this chunk: scores become weights.
    #[inline(always)]
    fn weigh(&mut self, index: usize, row: usize, seen: Range<usize>, softcap: Option<f32>) {
        let (scores, _) = self.scores[row * CHUNK..].as_chunks_mut::<CHUNK>();
        let state = &mut self.span[2 * (index * self.rows + row)..][..2];
        let mut running = get(state);
        self.factors[row] = weigh(self.simd, &mut scores[0], seen, softcap, &mut running);
        put(state, running);
    }

    /// Adds to each of `rows`, which fit a tile, the values of the keys it has `seen` by its weights: to as many rows at
    /// a time as see a key, and to no others, so that not even ∞ reaches a row that does not see it.
    #[inline(always)]
    fn sum_values<T: Stored>(
        &mut self,
        head: &ChunkHead,
        mut rows: Range<usize>,
        seen: impl Fn(usize) -> Range<usize>,
        v_cache: &[T],
    ) {
        // The further down a row, the further on are the keys it sees.
        let mut key = 0;
        while !rows.is_empty() {
            key = seen(rows.start).start.max(key);
            let waiting = rows.clone().rev().take_while(|&row| seen(row).start > key).count();
            let seeing = rows.start..rows.end - waiting;
            let mut end = seen(rows.start).end.min(head.kv_blocks.block_end(head.layout, key));
            // Up to where the next row begins to see: causal masks make rows start one after the other.
            if waiting > 0 {
                end = end.min(seen(seeing.end).start);
            }
            self.add_values(head, seeing.clone(), key..end, v_cache);
            // Rescaled with the first piece of the chunk; further pieces only add.
            self.factors[seeing].fill(1.0);
            key = end;
            rows.start += rows.clone().take_while(|&row| seen(row).end <= key).count();
        }
    }

    /// `span_values` of `rows` times their factors, plus the values of `keys`, which are of one block, by the weights.
    #[inline(always)]
    fn add_values<T: Stored>(&mut self, head: &ChunkHead, rows: Range<usize>, keys: Range<usize>, v_cache: &[T]) {
        let (d, width, panel) = (self.head_dim, padded(self.head_dim), 2 * S::LANES);
        let (next, next_head) = &head.next;
        for column in (0..d).step_by(panel) {
            let b = head.kv_blocks.value(head.layout, head.kv_head, keys.start, column);
            // The first of many tiles asks for all.
            let ahead = match rows.start < S::MAX_ROWS && next.within().contains(&keys.start) {
                true => next_rows::<S, T>(v_cache, next.value(head.layout, *next_head, keys.start, column)),
                false => Ahead::Nothing,
            };
            let tile = Tile {
                depth: keys.len(),
                a: self.scores[rows.start * CHUNK + keys.start..].as_ptr(),
                b: v_cache[b..b + keys.len() * panel].as_ptr().cast(),
                b_stride: panel * size_of::<T>(),
                c: self.span_values[(head.index * self.rows + rows.start) * width + column..].as_mut_ptr(),
                c_stride: width,
                columns: panel,
                start: Start::Scaled(self.factors[rows.start..].as_ptr()),
                ahead,
            };
            // SAFETY: as in `score`; keys of one block follow each other in a panel, and padding to whole panels makes room
            // for the last one.
            unsafe { S::over_chunk::<T::Panel>(rows.len())(&tile) };
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

    /// Length of [`Block::save`]'s result.
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
                let at = (token * args.layout.shape().heads + head) * d;
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

/// One KV head in one chunk.
struct ChunkHead {
    layout: CacheLayout,
    /// KV head among the unit's.
    index: usize,
    /// KV head of the model.
    kv_head: usize,
    kv_blocks: KvBlocks,
    /// Blocks that will most likely be read next, and the KV head.
    next: (KvBlocks, usize),
}

/// Asks for rows of the panel that begins at entry `at`, one at each step.
#[inline(always)]
fn next_rows<S: Simd, T>(cache: &[T], at: usize) -> Ahead {
    let bytes = 2 * S::LANES * size_of::<T>();
    Ahead::evenly(cache[at..].as_ptr().cast(), bytes, 1)
}

#[inline(always)]
fn get(state: &[f32]) -> Running {
    Running { largest: state[0], sum: state[1] }
}

#[inline(always)]
fn put(state: &mut [f32], running: Running) {
    state.copy_from_slice(&[running.largest, running.sum]);
}

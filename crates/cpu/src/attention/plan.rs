//! Division of one call into units of work, which never changes the result.

use std::cell::Cell;
use std::ops::Range;

use super::super::memory::Scratch;
use super::{CHUNK, PagedAttention, SPAN};

/// Rows (queries times heads) that share a chunk of keys, if one query has no more heads than that.
const ROWS: usize = 96;

/// Units for each thread from which on no context is split.
const UNITS_PER_THREAD: usize = 4;

/// Consecutive queries of one sequence, some KV heads, some spans of keys.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) sequence: usize,
    /// In all queries of the call.
    pub(super) first_token: usize,
    /// Position of the first query in its sequence.
    pub(super) first_position: usize,
    pub(super) tokens: usize,
    pub(super) kv_heads: Range<usize>,
    /// The keys that any of the queries sees.
    pub(super) keys: Range<usize>,
    pub(super) spans: Range<usize>,
    /// Start of its part of the partial results, if other units have the other spans.
    pub(super) partial: Option<usize>,
}

impl Unit {
    /// True where `next` has the following span of the same queries and heads.
    pub(super) fn continues(&self, next: &Unit) -> bool {
        (self.first_token, self.kv_heads.start, self.spans.end)
            == (next.first_token, next.kv_heads.start, next.spans.start)
            && self.partial.is_some()
            && next.partial.is_some()
    }

    /// The first keys of the chunks of `span` in which some query sees something.
    #[inline(always)]
    pub(super) fn chunks(&self, span: usize) -> impl Iterator<Item = usize> + use<> {
        let first = (self.keys.start / CHUNK * CHUNK).max(span * SPAN);
        (first..self.keys.end.min((span + 1) * SPAN)).step_by(CHUNK)
    }
}

thread_local! {
    /// Kept between calls, so that a steady step allocates nothing.
    static KEPT: Cell<(Vec<Unit>, Scratch)> = Cell::default();
}

/// The units of one call.
pub(super) struct AttentionPlan {
    units: Vec<Unit>,
    partials: usize,
}

impl AttentionPlan {
    /// Runs `work` with the plan for `args` and with room for partial results.
    pub(super) fn with(threads: usize, args: &PagedAttention<'_>, work: impl FnOnce(&AttentionPlan, &mut [f32])) {
        let (mut units, mut scratch) = KEPT.take();
        units.clear();
        let mut plan = AttentionPlan { units, partials: 0 };
        plan.fill(threads, args);
        work(&plan, scratch.floats(plan.partials));
        KEPT.set((plan.units, scratch));
    }

    pub(super) fn units(&self) -> &[Unit] {
        &self.units
    }

    fn fill(&mut self, threads: usize, args: &PagedAttention<'_>) {
        let shape = args.layout.shape();
        let group = shape.heads / shape.kv_heads;
        // Queries of one group share every key that is read: as many as fit the registers and the first-level cache.
        let most_tokens = (ROWS / group).max(1);
        let sequences = args.cu_q.len().saturating_sub(1);
        let queries = |sequence: usize| (args.cu_q[sequence + 1] - args.cu_q[sequence]) as usize;
        let blocks: usize = (0..sequences).map(|sequence| queries(sequence).div_ceil(most_tokens)).sum();
        let enough = threads * UNITS_PER_THREAD;
        // All heads of a key lie side by side: with single queries, which are at the mercy of memory, a unit reads
        // them all, if that leaves enough units.
        let heads_each = if threads == 1 || (blocks >= enough && most_tokens > 1) { shape.kv_heads } else { 1 };
        // Splits cost a merge: they are for steps that otherwise leave threads without work, such as one long context.
        let split = threads > 1 && blocks * shape.kv_heads < enough;
        for sequence in 0..sequences {
            let count = queries(sequence);
            let keys = (args.cu_k[sequence + 1] - args.cu_k[sequence]) as usize;
            // The last queries have the most to do: they come first.
            for block in (0..count.div_ceil(most_tokens)).rev() {
                let first = block * most_tokens;
                let tokens = most_tokens.min(count - first);
                let first_position = keys - count + first;
                let seen = args.seen(first_position).start..first_position + tokens;
                let spans = seen.start / SPAN..(seen.end - 1) / SPAN + 1;
                let heads_each = if tokens == 1 { heads_each } else { 1 };
                for head in (0..shape.kv_heads).step_by(heads_each) {
                    let unit = Unit {
                        sequence,
                        first_token: args.cu_q[sequence] as usize + first,
                        first_position,
                        tokens,
                        kv_heads: head..(head + heads_each).min(shape.kv_heads),
                        keys: seen.clone(),
                        spans: spans.clone(),
                        partial: None,
                    };
                    self.add(unit, split, args);
                }
            }
        }
    }

    fn add(&mut self, unit: Unit, split: bool, args: &PagedAttention<'_>) {
        if !split || unit.spans.len() == 1 {
            self.units.push(unit);
            return;
        }
        let shape = args.layout.shape();
        let rows = unit.tokens * shape.heads / shape.kv_heads * unit.kv_heads.len();
        for span in unit.spans.clone() {
            self.units.push(Unit { spans: span..span + 1, partial: Some(self.partials), ..unit.clone() });
            self.partials += super::block::saved_len(rows, shape.head_dim);
        }
    }
}

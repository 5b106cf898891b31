//! Which tokens of which sequences the next step computes: continuous batching with chunked prefill.
//!
//! Each step has a budget of tokens. Sequences that decode come first, one token each; what is left of the budget
//! goes to prompts, in chunks, first come first served. When a decoding sequence finds no block, the youngest running
//! one gives its blocks back and is recomputed later: its generated tokens are then part of what it prefills. The
//! running sequences are always the oldest unfinished ones, so the oldest makes progress in every step and nobody
//! starves.
//!
//! This file counts tokens and blocks. It knows nothing of tensors or time, and hands token ids on to the blocks without
//! a look at them: where prefixes are cached, a sequence begins behind what is computed already.

use crate::schedule::blocks::{BlockPool, BlockTable};
use std::collections::VecDeque;
use std::ops::Range;

/// What one step may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences that run at a time, at least 1.
    pub max_num_seqs: usize,
    /// Tokens computed in one step, at least 1.
    pub max_num_batched_tokens: usize,
}

/// A sequence's number: the order in which it was added.
pub type SequenceIndex = usize;

/// The ids of all known tokens of a sequence. Asked only where prefixes are cached.
pub type KnownTokens<'a> = dyn Fn(SequenceIndex) -> &'a [u32] + 'a;

/// A piece of one sequence, computed in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Which sequence.
    pub sequence: SequenceIndex,
    /// Positions computed; never empty.
    pub positions: Range<usize>,
    /// It reaches the last known token, so its last row's logits choose the next one.
    pub samples: bool,
    /// It is one token of a sequence whose prefill is done.
    pub decodes: bool,
}

/// What the next step computes, and what changed to make it possible.
#[derive(Debug, Default)]
pub struct Batch {
    /// Decoding sequences first, then prefill chunks.
    pub chunks: Vec<Chunk>,
    /// Sequences that lost their blocks, youngest first.
    pub preempted: Vec<SequenceIndex>,
    /// Sequences that run for the first time.
    pub admitted: Vec<Admission>,
}

/// A sequence runs for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which.
    pub sequence: SequenceIndex,
    /// Tokens of its prompt whose keys and values were found in the cache.
    pub reused_tokens: usize,
}

/// A sequence that could not run even if it had the whole cache to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeverFits {
    /// Tokens whose keys and values it needs to keep at its longest.
    pub needed_tokens: usize,
    /// Tokens that the cache holds.
    pub cache_tokens: usize,
}

#[derive(Debug)]
struct Sequence {
    /// Tokens whose ids are known: prompt and generated ones.
    known: usize,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    /// Decoding begins once this many are computed.
    prefill: usize,
    table: BlockTable,
    has_run: bool,
    /// Tokens at its beginning that other sequences had computed.
    found: usize,
    /// It neither reads blocks of other sequences nor leaves them its own.
    alone: bool,
}

/// Outcome for a sequence for which no token could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It is over, and its blocks are free.
    Over,
    /// It has lost its blocks and is computed once more, all of it for itself.
    ComputedAgain,
}

/// Decides step after step until every sequence is finished.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    sequences: Vec<Sequence>,
    /// Oldest first.
    waiting: VecDeque<SequenceIndex>,
    /// Oldest first; each is older than all that wait, but for those that are computed again.
    running: Vec<SequenceIndex>,
    batch: Batch,
}

impl Scheduler {
    /// Over an empty cache.
    pub fn new(limits: Limits, pool: BlockPool) -> Self {
        let limits = Limits {
            max_num_seqs: limits.max_num_seqs.max(1),
            max_num_batched_tokens: limits.max_num_batched_tokens.max(1),
        };
        Self {
            limits,
            pool,
            sequences: Vec::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            batch: Batch::default(),
        }
    }

    /// Queues a sequence of `prompt` tokens (at least 1) that may generate `max_new` more (at least 1).
    pub fn add(&mut self, prompt: usize, max_new: usize) -> Result<SequenceIndex, NeverFits> {
        // The last generated token is handed out, never fed back: its keys and values are not needed.
        let needed_tokens = prompt.saturating_add(max_new).saturating_sub(1);
        let needed_blocks = self.pool.blocks_for(needed_tokens);
        if needed_blocks > self.pool.total() {
            let cache_tokens = self.pool.total() * self.pool.block_tokens();
            return Err(NeverFits { needed_tokens, cache_tokens });
        }
        let index = self.sequences.len();
        let table = BlockTable::with_capacity(needed_blocks);
        self.sequences.push(Sequence {
            known: prompt,
            computed: 0,
            prefill: prompt,
            table,
            has_run: false,
            found: 0,
            alone: false,
        });
        self.waiting.push_back(index);
        Ok(index)
    }

    /// Whether every sequence is finished.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that hold none.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The blocks of a sequence.
    pub fn table(&self, sequence: SequenceIndex) -> &BlockTable {
        &self.sequences[sequence].table
    }

    /// The step that was scheduled last.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Decides the next step. Its chunks are empty only when every sequence is finished.
    pub fn schedule(&mut self, known_tokens: &KnownTokens) -> &Batch {
        self.batch.chunks.clear();
        self.batch.preempted.clear();
        self.batch.admitted.clear();
        let mut budget = self.limits.max_num_batched_tokens;
        self.schedule_decodes(&mut budget);
        self.schedule_prefills(&mut budget);
        // What was just taken from one sequence is not given to another: it would be taken again.
        if self.batch.preempted.is_empty() {
            self.admit(&mut budget, known_tokens);
        }
        &self.batch
    }

    fn schedule_decodes(&mut self, budget: &mut usize) {
        let mut place = 0;
        while place < self.running.len() && *budget > 0 {
            let index = self.running[place];
            place += 1;
            if self.sequences[index].computed >= self.sequences[index].prefill && self.make_room(index) {
                *budget -= self.push_chunk(index, 1, true);
            }
        }
    }

    /// Gives `index` a block for its last known token, at the cost of younger sequences; false if it was itself the
    /// youngest and has lost its blocks.
    fn make_room(&mut self, index: SequenceIndex) -> bool {
        loop {
            let sequence = &mut self.sequences[index];
            if self.pool.grow(&mut sequence.table, sequence.known).is_ok() {
                return true;
            }
            // `index` runs, so there is a youngest one. It has no chunk in this batch yet: it is `index` or younger.
            let Some(youngest) = self.running.pop() else { return false };
            self.send_back(youngest);
            self.batch.preempted.push(youngest);
            if youngest == index {
                return false;
            }
        }
    }

    /// A sequence that no longer runs waits again, with nothing computed.
    fn send_back(&mut self, index: SequenceIndex) {
        let sequence = &mut self.sequences[index];
        self.pool.release(&mut sequence.table);
        sequence.computed = 0;
        sequence.prefill = sequence.known;
        let place = self.waiting.partition_point(|&waiting| waiting < index);
        self.waiting.insert(place, index);
    }

    fn schedule_prefills(&mut self, budget: &mut usize) {
        for place in 0..self.running.len() {
            if *budget == 0 {
                return;
            }
            let index = self.running[place];
            if self.sequences[index].computed < self.sequences[index].prefill {
                *budget -= self.push_chunk(index, *budget, false);
            }
        }
    }

    /// Lets waiting sequences run while there is room. Blocks for all that is known of a sequence are taken at once,
    /// so that a prefill once begun is not stopped by another; and a block stays free for each running sequence, which
    /// it will ask for before long.
    fn admit(&mut self, budget: &mut usize, known_tokens: &KnownTokens) {
        while *budget > 0 && self.running.len() < self.limits.max_num_seqs {
            let Some(&index) = self.waiting.front() else { return };
            let sequence = &mut self.sequences[index];
            // What is found is held before room is looked for, so that it does not itself become the room.
            let reused_tokens = match self.pool.caches_prefixes() && !sequence.alone {
                true => self.pool.reuse(&mut sequence.table, known_tokens(index)),
                false => 0,
            };
            let needed = self.pool.blocks_for(sequence.known - reused_tokens) + self.running.len();
            if needed > self.pool.free() || self.pool.grow(&mut sequence.table, sequence.known).is_err() {
                self.pool.release(&mut sequence.table);
                return;
            }
            sequence.computed = reused_tokens;
            sequence.found = if sequence.has_run { sequence.found.min(reused_tokens) } else { reused_tokens };
            if !sequence.has_run {
                sequence.has_run = true;
                self.batch.admitted.push(Admission { sequence: index, reused_tokens });
            }
            self.waiting.pop_front();
            let place = self.running.partition_point(|&running| running < index);
            self.running.insert(place, index);
            *budget -= self.push_chunk(index, *budget, false);
        }
    }

    fn push_chunk(&mut self, index: SequenceIndex, most: usize, decodes: bool) -> usize {
        let sequence = &self.sequences[index];
        let tokens = (sequence.known - sequence.computed).min(most);
        let positions = sequence.computed..sequence.computed + tokens;
        let samples = positions.end == sequence.known;
        self.batch.chunks.push(Chunk { sequence: index, positions, samples, decodes });
        tokens
    }

    /// The scheduled step was computed: each sampling sequence knows one token more, and other sequences can find what is
    /// in the cache now. `known_tokens` are still those of before.
    pub fn advance(&mut self, known_tokens: &KnownTokens) {
        for chunk in self.batch.chunks.drain(..) {
            let sequence = &mut self.sequences[chunk.sequence];
            sequence.computed = chunk.positions.end;
            sequence.known += usize::from(chunk.samples);
            if self.pool.caches_prefixes() && !sequence.alone {
                self.pool.remember(&mut sequence.table, &known_tokens(chunk.sequence)[..sequence.computed]);
            }
        }
    }

    /// A sequence needs no more tokens; its blocks are free.
    pub fn finish(&mut self, sequence: SequenceIndex) {
        self.running.retain(|&index| index != sequence);
        self.pool.release(&mut self.sequences[sequence].table);
    }

    /// No token could be chosen for a sequence of the scheduled step: said before [`Self::advance`], so that nobody finds what
    /// this step computed of it. What earlier ones did is forgotten, too.
    ///
    /// It is not over yet where it holds blocks that others may have computed. Attention on a GPU multiplies values that a
    /// query does not see by a weight of zero, and zero times NaN is NaN: the beginning of another sequence that is not finite
    /// further on may be spoilt, and this one with it. Computed all for itself, it shows.
    pub fn fail(&mut self, index: SequenceIndex) -> Failed {
        self.batch.chunks.retain(|chunk| chunk.sequence != index);
        let sequence = &mut self.sequences[index];
        self.pool.forget(&sequence.table, sequence.found);
        if !sequence.table.shares() {
            self.finish(index);
            return Failed::Over;
        }
        sequence.alone = true;
        self.running.retain(|&running| running != index);
        self.send_back(index);
        Failed::ComputedAgain
    }
}

#[cfg(test)]
mod tests;

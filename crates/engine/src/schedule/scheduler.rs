//! The tokens of the next step: continuous batching (Yu et al., "Orca", 2022) with chunked prefill (Agrawal et al., "Sarathi",
//! 2023) over PagedAttention's blocks (Kwon et al., 2023).
//!
//! Each step has a budget of tokens. Sequences that decode come first, one token each; what is left of the budget
//! goes to prompts, in chunks, first come first served. When a decoding sequence finds no block, the youngest running
//! one gives its blocks back and is recomputed later: its generated tokens are then part of what it prefills. The
//! running sequences are always the oldest unfinished ones, so the oldest makes progress in every step and none
//! starves.
//!
//! This file counts tokens and blocks. It knows nothing of tensors or time, and hands token ids on to the blocks without
//! a look at them: where prefixes are cached, a sequence begins behind what is computed already.

use std::collections::VecDeque;

use super::blocks::{BlockPool, BlockTable};
use super::limits::EngineLimits;
use super::request::{NeverFits, Output, Request};
use super::scheduler_output::{Admission, ScheduledSequence, SchedulerOutput, SequenceIndex};
use super::sequence::Sequence;
use flashjob_event::FinishReason;

/// Outcome for a sequence for which no token could be chosen.
#[derive(Debug)]
pub enum Failed {
    /// It is over, and its blocks are free.
    Over(Output),
    /// It has lost its blocks and is computed once more, all of it for itself.
    ComputedAgain,
}

/// Decides step after step until every sequence is finished.
#[derive(Debug)]
pub struct Scheduler {
    limits: EngineLimits,
    pool: BlockPool,
    sequences: Vec<Sequence>,
    /// Sequences without blocks, oldest first.
    waiting: VecDeque<SequenceIndex>,
    /// Oldest first; each is older than all that wait, but for those that are computed again.
    running: Vec<SequenceIndex>,
    batch: SchedulerOutput,
}

impl Scheduler {
    /// Over an empty cache.
    pub fn new(limits: EngineLimits, pool: BlockPool) -> Self {
        let limits = EngineLimits {
            max_num_seqs: limits.max_num_seqs.max(1),
            max_num_batched_tokens: limits.max_num_batched_tokens.max(1),
            ..limits
        };
        Self {
            limits,
            pool,
            sequences: Vec::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            batch: SchedulerOutput::default(),
        }
    }

    /// Blocks that a sequence of `num_prompt_tokens` tokens (at least 1) needs at its longest, `max_tokens` (at least 1)
    /// generated ones included.
    ///
    /// # Errors
    /// [`NeverFits`] where the whole cache has fewer.
    pub fn needed_blocks(&self, num_prompt_tokens: usize, max_tokens: usize) -> Result<usize, NeverFits> {
        // The last generated token is handed out, never fed back: its keys and values are not needed.
        let needed_tokens = num_prompt_tokens.saturating_add(max_tokens).saturating_sub(1);
        let needed_blocks = self.pool.blocks_for(needed_tokens);
        if needed_blocks > self.pool.total() {
            let cache_tokens = self.pool.total() * self.pool.block_size();
            return Err(NeverFits { needed_tokens, cache_tokens });
        }
        Ok(needed_blocks)
    }

    /// Queues a sequence for `request`, whose prompt is not empty.
    ///
    /// # Errors
    /// [`NeverFits`]: it is not queued then.
    pub fn add(&mut self, request: Request) -> Result<SequenceIndex, NeverFits> {
        let needed_blocks = self.needed_blocks(request.prompt.len(), request.max_tokens)?;
        // Indices are never reused within a run, so that order of index is order of arrival.
        let index = self.sequences.len();
        self.sequences.push(Sequence::new(request, BlockTable::with_capacity(needed_blocks)));
        self.waiting.push_back(index);
        Ok(index)
    }

    /// True once every sequence is finished.
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

    /// Blocks of the cache, free and used ones.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// A sequence that was added.
    pub fn sequence(&self, index: SequenceIndex) -> &Sequence {
        &self.sequences[index]
    }

    /// The step that was scheduled last.
    pub fn batch(&self) -> &SchedulerOutput {
        &self.batch
    }

    /// Decides the next step. It schedules nothing only when every sequence is finished.
    pub fn schedule(&mut self) -> &SchedulerOutput {
        self.batch.scheduled.clear();
        self.batch.preempted.clear();
        self.batch.admitted.clear();
        let mut budget = self.limits.max_num_batched_tokens;
        // Decodes before prefills: a sequence that has begun to answer keeps its pace (TPOT), and frees its blocks soonest.
        self.schedule_decodes(&mut budget);
        self.schedule_prefills(&mut budget);
        // What was just taken from one sequence is not given to another: it would be taken again.
        if self.batch.preempted.is_empty() {
            self.admit(&mut budget);
        }
        &self.batch
    }

    fn schedule_decodes(&mut self, budget: &mut usize) {
        let mut place = 0;
        // By index, not by iterator: making room takes sequences off the end of the list while it is walked.
        while place < self.running.len() && *budget > 0 {
            let index = self.running[place];
            place += 1;
            if self.sequences[index].is_decoding() && self.make_room(index) {
                *budget -= self.push(index, 1, true);
            }
        }
    }

    /// Gives `index` a block for its last known token, at the cost of younger sequences; false if it was itself the
    /// youngest and has lost its blocks.
    fn make_room(&mut self, index: SequenceIndex) -> bool {
        loop {
            let sequence = &mut self.sequences[index];
            let num_tokens = sequence.num_tokens();
            if self.pool.grow(&mut sequence.table, num_tokens).is_ok() {
                return true;
            }
            // Recomputing costs least for the youngest: it has the fewest tokens, and none that is older waits for it.
            // `index` runs, so there is a youngest one. It is not in this batch yet: it is `index` or younger.
            let Some(youngest) = self.running.pop() else { return false };
            // Its blocks go back whole. Swapping them to the host would cost a copy each way; recomputing them is one prefill.
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
        sequence.num_computed_tokens = 0;
        // Generated tokens are known, so that they are recomputed at the speed of a prompt.
        sequence.num_prefill_tokens = sequence.num_tokens();
        // By age, not at the end: the running ones must stay older than those that wait.
        let place = self.waiting.partition_point(|&waiting| waiting < index);
        self.waiting.insert(place, index);
    }

    fn schedule_prefills(&mut self, budget: &mut usize) {
        for place in 0..self.running.len() {
            if *budget == 0 {
                return;
            }
            let index = self.running[place];
            if !self.sequences[index].is_decoding() {
                *budget -= self.push(index, *budget, false);
            }
        }
    }

    /// Lets waiting sequences run while there is room. Blocks for all that is known of a sequence are taken at once,
    /// so that a prefill once begun is not stopped by another; and a block stays free for each running sequence, which
    /// it will ask for before long.
    fn admit(&mut self, budget: &mut usize) {
        while *budget > 0 && self.running.len() < self.limits.max_num_seqs {
            // Only the first in line: strict order is what makes the oldest request always progress.
            let Some(&index) = self.waiting.front() else { return };
            let sequence = &mut self.sequences[index];
            // What is found is held before room is looked for, so that it does not itself become the room.
            let reused_tokens = match self.pool.caches_prefixes() && !sequence.is_isolated {
                true => sequence.reuse(&mut self.pool),
                false => 0,
            };
            let num_tokens = sequence.num_tokens();
            let needed = self.pool.blocks_for(num_tokens - reused_tokens) + self.running.len();
            if needed > self.pool.free() || self.pool.grow(&mut sequence.table, num_tokens).is_err() {
                // First come, first served: a shorter one behind it does not overtake, or a long one might wait for ever.
                self.pool.release(&mut sequence.table);
                return;
            }
            sequence.num_computed_tokens = reused_tokens;
            // After a preemption it may find its own blocks again: only what it found at first is certainly of others.
            let others = if sequence.has_run { sequence.num_reused_tokens.min(reused_tokens) } else { reused_tokens };
            sequence.num_reused_tokens = others;
            if !sequence.has_run {
                sequence.has_run = true;
                self.batch.admitted.push(Admission { sequence: index, reused_tokens });
            }
            self.waiting.pop_front();
            // One that is computed again may be older than some that run already.
            let place = self.running.partition_point(|&running| running < index);
            self.running.insert(place, index);
            *budget -= self.push(index, *budget, false);
        }
    }

    /// Schedules what is not computed of a sequence, `most` tokens at most; returns how many.
    fn push(&mut self, index: SequenceIndex, most: usize, decodes: bool) -> usize {
        let sequence = &self.sequences[index];
        let num_computed_tokens = sequence.num_computed_tokens;
        let num_scheduled_tokens = (sequence.num_tokens() - num_computed_tokens).min(most);
        let samples = num_computed_tokens + num_scheduled_tokens == sequence.num_tokens();
        let scheduled =
            ScheduledSequence { sequence: index, num_computed_tokens, num_scheduled_tokens, samples, decodes };
        self.batch.scheduled.push(scheduled);
        num_scheduled_tokens
    }

    /// Notes that the scheduled step was computed: other sequences can find what is in the cache now. Called before
    /// [`Self::append`] of the tokens that the step chose.
    pub fn advance(&mut self) {
        for scheduled in self.batch.scheduled.drain(..) {
            let sequence = &mut self.sequences[scheduled.sequence];
            sequence.num_computed_tokens = scheduled.positions().end;
            if self.pool.caches_prefixes() && !sequence.is_isolated {
                sequence.remember(&mut self.pool);
            }
        }
    }

    /// Adds a generated token to a sequence; gives the reason why it was the last, if it was.
    pub fn append(&mut self, index: SequenceIndex, token: u32) -> Option<FinishReason> {
        self.sequences[index].append(token)
    }

    /// Ends a sequence, and frees its blocks.
    pub fn finish(&mut self, index: SequenceIndex, reason: FinishReason) -> Output {
        self.release(index);
        self.sequences[index].take_output(reason)
    }

    fn release(&mut self, index: SequenceIndex) {
        self.running.retain(|&running| running != index);
        self.pool.release(&mut self.sequences[index].table);
    }

    /// No token could be chosen for a sequence of the scheduled step: called before [`Self::advance`], so that no other one finds what
    /// this step computed of it. What earlier ones did is forgotten, too.
    ///
    /// It is not over yet where it holds blocks that others may have computed. Attention on a GPU multiplies values that a
    /// query does not see by a weight of zero, and zero times NaN is NaN: the beginning of another sequence that is not finite
    /// further on may be spoilt, and this one with it. Computed all for itself, it shows.
    pub fn fail(&mut self, index: SequenceIndex) -> Failed {
        // Its tokens must not be noted as computed: other sequences would find blocks with NaN in them.
        self.batch.scheduled.retain(|scheduled| scheduled.sequence != index);
        let sequence = &mut self.sequences[index];
        self.pool.forget(&sequence.table, sequence.num_reused_tokens);
        if !sequence.table.shares() {
            self.release(index);
            return Failed::Over(self.sequences[index].take_failed_output());
        }
        sequence.is_isolated = true;
        self.running.retain(|&running| running != index);
        self.send_back(index);
        Failed::ComputedAgain
    }
}

#[cfg(test)]
mod tests;

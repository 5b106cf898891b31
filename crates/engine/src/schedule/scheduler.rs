//! The tokens of the next step: continuous batching (Yu et al., "Orca", 2022) with chunked prefill (Agrawal et al., "Sarathi",
//! 2023) over PagedAttention's blocks (Kwon et al., 2023).
//!
//! Each step has a budget of tokens. Sequences that decode come first, one token each; what is left of the budget
//! goes to prompts, in chunks, first come first served. When a decoding sequence finds no block, the youngest running
//! one gives its blocks back and is recomputed later: its generated tokens are then part of what it prefills. The
//! running sequences are always the oldest unfinished ones, so the oldest makes progress in every step and none
//! starves. Where steps are replayed, waiting ones are admitted in groups ([`AdmissionPolicy`]).
//!
//! A step may be decided while the one before it is still under way: its tokens then count, though nobody knows them yet. So a
//! sequence that such a token ends is in one step too many, whose outcome for it is dropped.
//!
//! This file counts tokens and blocks. It knows nothing of tensors or time, and hands token ids on to the blocks without
//! a look at them: where prefixes are cached, a sequence begins behind what is computed already.

use std::collections::VecDeque;

use super::admission::{AdmissionGate, AdmissionPolicy};
use super::blocks::{BlockPool, BlockTable};
use super::limits::EngineLimits;
use super::request::{NotFinite, Output, Request, RequestError};
use super::scheduler_output::{Admission, ScheduledSequence, SchedulerOutput, SequenceIndex};
use super::sequence::Sequence;
use super::sequences::Sequences;
use flashjob_cpu::TokenLogprobs;
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
    sequences: Sequences,
    /// Sequences without blocks, oldest first: those that were preempted, and one at most that has never run.
    waiting: VecDeque<SequenceIndex>,
    /// Oldest first; each is older than all that wait, but for those that are computed again.
    running: Vec<SequenceIndex>,
    gate: AdmissionGate,
    batch: SchedulerOutput,
}

impl Scheduler {
    /// Over an empty cache.
    pub fn new(limits: EngineLimits, pool: BlockPool, admission: AdmissionPolicy) -> Self {
        let limits = EngineLimits {
            max_num_seqs: limits.max_num_seqs.max(1),
            max_num_batched_tokens: limits.max_num_batched_tokens.max(1),
            ..limits
        };
        Self {
            limits,
            pool,
            sequences: Sequences::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            gate: AdmissionGate::new(admission),
            batch: SchedulerOutput::default(),
        }
    }

    /// Lets a sequence for `request` wait behind all others.
    fn add(&mut self, request: Request) -> SequenceIndex {
        let table = BlockTable::with_capacity(self.pool.blocks_for(request.cached_tokens()));
        let index = self.sequences.push(Sequence::new(request, table));
        self.waiting.push_back(index);
        index
    }

    /// True where no sequence is unfinished.
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

    /// An unfinished sequence.
    pub fn sequence(&self, index: SequenceIndex) -> &Sequence {
        &self.sequences[index]
    }

    /// The step that was scheduled last.
    pub fn batch(&self) -> &SchedulerOutput {
        &self.batch
    }

    /// Tells that sequences may lose their blocks in the next step. Where a step is under way it is better waited for: sequences that it
    /// ends give theirs back, and its tokens are then known, which a sequence without blocks would lose.
    pub fn is_short_of_blocks(&self) -> bool {
        // Each asks for one at most.
        self.pool.free() < self.running.len() && {
            let running = self.running.iter().map(|&index| &self.sequences[index]);
            let decoding = running.filter(|sequence| sequence.is_decoding() && !sequence.is_complete());
            let wanted = decoding.map(|sequence| self.pool.missing(&sequence.table, sequence.num_tokens()));
            wanted.sum::<usize>() > self.pool.free()
        }
    }

    /// True where the logits of a sequence follow from tokens that are not known yet: no step is decided before they are.
    pub fn needs_tokens(&self) -> bool {
        self.running.iter().any(|&index| self.sequences[index].needs_tokens())
    }

    /// Decides the next step. It asks for the `next` of about so many `queued` requests only when there is room for a sequence, and each must pass
    /// [`Request::check`]. It schedules nothing only when every sequence is finished, or has its last tokens under way, and there is no next
    /// request that has room.
    pub fn schedule(&mut self, queued: usize, next: &mut dyn FnMut() -> Option<Request>) -> &SchedulerOutput {
        self.batch.scheduled.clear();
        self.batch.preempted.clear();
        self.batch.admitted.clear();
        let mut budget = self.limits.max_num_batched_tokens;
        // Decodes before prefills: a sequence that has begun to answer keeps its pace (TPOT), and frees its blocks soonest.
        self.schedule_decodes(&mut budget);
        self.schedule_prefills(&mut budget);
        // What was just taken from one sequence is not given to another: it would be taken again.
        if self.batch.preempted.is_empty() {
            self.admit(&mut budget, queued, next);
        }
        &self.batch
    }

    fn schedule_decodes(&mut self, budget: &mut usize) {
        let mut place = 0;
        // By index, not by iterator: making room takes sequences off the end of the list while it is walked.
        while place < self.running.len() && *budget > 0 {
            let index = self.running[place];
            place += 1;
            let sequence = &self.sequences[index];
            if sequence.is_decoding() && !sequence.is_complete() && self.make_room(index) {
                *budget -= self.push(index, 1, true);
            }
        }
    }

    /// Gives `index` a block for its last token, at the cost of younger sequences; false if it was itself the
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
        sequence.restart();
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
    fn admit(&mut self, budget: &mut usize, mut queued: usize, next: &mut dyn FnMut() -> Option<Request>) {
        if !self.gate.opens(self.running.len()) {
            return;
        }
        while *budget > 0 {
            // Only the first in line: strict order is what makes the oldest request always progress.
            let first = self.waiting.front().copied();
            if self.running.len() >= self.limits.max_num_seqs {
                if self.waiting.len() + queued > 0 {
                    self.gate.close(self.running.len(), self.waiting.len() + queued);
                }
                return;
            }
            // A request that another engine could run at once is not taken from it in advance.
            let mut taken = || {
                let index = next().map(|request| self.add(request));
                queued = queued.saturating_sub(1);
                index
            };
            let Some(index) = first.or_else(&mut taken) else { return };
            let sequence = &mut self.sequences[index];
            // What is found is held before room is looked for, so that it does not itself become the room.
            let reused_tokens = match self.pool.caches_prefixes() && !sequence.is_isolated {
                true => sequence.reuse(&mut self.pool),
                false => 0,
            };
            let num_tokens = sequence.num_tokens();
            if self.is_computed_meanwhile(index, reused_tokens) {
                self.pool.release(&mut self.sequences[index].table);
                return;
            }
            let sequence = &mut self.sequences[index];
            let needed = self.pool.blocks_for(num_tokens - reused_tokens) + self.running.len();
            if needed > self.pool.free() || self.pool.grow(&mut sequence.table, num_tokens).is_err() {
                // First come, first served: a shorter one behind it does not overtake, or a long one might wait for ever.
                self.pool.release(&mut sequence.table);
                return self.gate.close(self.running.len(), self.waiting.len() + queued);
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

    /// Returns whether a running sequence is about to compute the next block of `index`, of which so many tokens were found: a step
    /// later more of it is found, and what both have in common is computed once.
    fn is_computed_meanwhile(&self, index: SequenceIndex, reused_tokens: usize) -> bool {
        let sequence = &self.sequences[index];
        let end = reused_tokens + self.limits.block_size;
        // The last token is always computed.
        if !self.pool.caches_prefixes() || sequence.is_isolated || end >= sequence.num_tokens() {
            return false;
        }
        let is_computing =
            |other: &Sequence| !other.is_isolated && other.num_computed_tokens < end && end <= other.num_prefill_tokens;
        let begins_alike = |other: &Sequence| other.tokens()[..end] == sequence.tokens()[..end];
        let running = self.running.iter().map(|&running| &self.sequences[running]);
        running.filter(|other| is_computing(other)).any(begins_alike)
    }

    /// Schedules what is not computed of a sequence, `most` tokens at most; returns how many.
    fn push(&mut self, index: SequenceIndex, most: usize, decodes: bool) -> usize {
        let sequence = &self.sequences[index];
        let num_computed_tokens = sequence.num_computed_tokens;
        let num_scheduled_tokens = (sequence.num_tokens() - num_computed_tokens).min(most);
        let samples = num_computed_tokens + num_scheduled_tokens == sequence.num_tokens();
        let restarts = sequence.restarts;
        let scheduled = ScheduledSequence {
            sequence: index,
            num_computed_tokens,
            num_scheduled_tokens,
            samples,
            decodes,
            restarts,
        };
        self.batch.scheduled.push(scheduled);
        num_scheduled_tokens
    }

    /// Notes that the scheduled step is under way, and hands it out in the place of what `step` was: each of its sequences counts as
    /// computed so far, and as one token longer where the step chooses one.
    pub fn begin(&mut self, step: &mut Vec<ScheduledSequence>) {
        step.clear();
        std::mem::swap(step, &mut self.batch.scheduled);
        let mut place = 0;
        for scheduled in &*step {
            let sequence = &mut self.sequences[scheduled.sequence];
            sequence.num_computed_tokens = scheduled.positions().end;
            if scheduled.samples {
                sequence.expect(place);
                place += 1;
            }
        }
    }

    /// True where what a step computed of a sequence still stands: it has neither ended nor lost its blocks since.
    pub fn stands(&self, scheduled: &ScheduledSequence) -> bool {
        self.sequences.get(scheduled.sequence).is_some_and(|sequence| sequence.restarts == scheduled.restarts)
    }

    /// Notes that `step` is done: other sequences can find what it left in the cache. Called before [`Self::append`] of the tokens that it
    /// chose.
    pub fn advance(&mut self, step: &[ScheduledSequence]) {
        if !self.pool.caches_prefixes() {
            return;
        }
        for scheduled in step {
            if self.stands(scheduled) && !self.sequences[scheduled.sequence].is_isolated {
                self.sequences[scheduled.sequence].remember(&mut self.pool, scheduled.positions().end);
            }
        }
    }

    /// Keeps log-probabilities of the token that a sequence is about to get.
    pub fn note_logprobs(&mut self, index: SequenceIndex, of_token: TokenLogprobs) {
        self.sequences[index].note_logprobs(of_token);
    }

    /// Adds a generated token to a sequence; gives the reason why it was the last, if it was.
    pub fn append(&mut self, index: SequenceIndex, token: u32) -> Option<FinishReason> {
        self.sequences[index].append(token)
    }

    /// Ends a sequence, and frees its blocks. A step under way may still write to them: whatever uses them next comes behind it.
    pub fn finish(&mut self, index: SequenceIndex, reason: FinishReason) -> Output {
        self.release(index);
        self.sequences.remove(index).into_output(reason)
    }

    /// Ends a sequence with an error that is its own. It keeps the tokens that it has.
    pub fn abort(&mut self, index: SequenceIndex, error: RequestError) -> Output {
        self.release(index);
        self.sequences.remove(index).into_failed_output(error)
    }

    fn release(&mut self, index: SequenceIndex) {
        self.running.retain(|&running| running != index);
        self.pool.release(&mut self.sequences[index].table);
    }

    /// No token could be chosen for a sequence of the step that is done: called before [`Self::advance`], so that no other one finds what
    /// this step computed of it. What earlier ones did is forgotten, too.
    ///
    /// It is not over yet where it holds blocks that others may have computed. Attention on a GPU multiplies values that a
    /// query does not see by a weight of zero, and zero times NaN is NaN: the beginning of another sequence that is not finite
    /// further on may be spoilt, and this one with it. Computed all for itself, it shows.
    pub fn fail(&mut self, index: SequenceIndex) -> Failed {
        // Nor does what was computed stand: others would find blocks with NaN in them.
        let sequence = &mut self.sequences[index];
        self.pool.forget(&sequence.table, sequence.num_reused_tokens);
        if !sequence.table.shares() {
            let error = NotFinite { request: sequence.id(), position: sequence.tokens().len() };
            return Failed::Over(self.abort(index, error.into()));
        }
        sequence.is_isolated = true;
        self.running.retain(|&running| running != index);
        self.send_back(index);
        Failed::ComputedAgain
    }
}

#[cfg(test)]
mod tests;

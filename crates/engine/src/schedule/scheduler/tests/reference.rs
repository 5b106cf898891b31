//! A reference model of requests, which knows only what each request asked for, and the run of a scheduler against it.
//!
//! The model computes, in place of keys and values, a fingerprint of all tokens up to a position, and writes it into the
//! slot that the scheduler names. The next token is chosen by what is read there: a block that is given away too early,
//! shared wrongly or recomputed wrongly changes tokens.
//!
//! A token that is [`SPOILT`] stands for one whose keys and values are not finite. As attention on a GPU may do, it spoils
//! all that is computed in one step with it, what comes before it included; and whoever reads that has no next token.

use std::collections::{HashMap, HashSet};

use flashjob_event::RequestId;
use proptest::prelude::*;

use crate::schedule::limits::EngineLimits;
use crate::schedule::request::NotFinite;
use crate::schedule::scheduler::{Failed, Scheduler};
use crate::schedule::scheduler_output::{ScheduledSequence, SchedulerOutput, SequenceIndex};

/// Expected state of one request, tracked outside the scheduler.
pub struct Reference {
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    pub prompt: usize,
    pub max_tokens: usize,
    pub generated: usize,
    /// Tokens in the cache, as the steps said.
    cached: usize,
    pub preemptions: usize,
    /// It has failed with blocks that others may have computed.
    again: bool,
    pub failed: bool,
}

/// A token, and what is found in slots that such tokens have spoilt. None is ever chosen.
pub const SPOILT: u32 = 9;
const SPOILT_CONTENT: u64 = u64::MAX;

impl Reference {
    /// A request that has not run.
    pub fn new(tokens: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt: tokens.len(),
            tokens,
            max_tokens,
            generated: 0,
            cached: 0,
            preemptions: 0,
            again: false,
            failed: false,
        }
    }

    /// True where no next token can be chosen.
    pub fn is_spoilt(&self) -> bool {
        self.tokens.contains(&SPOILT)
    }

    /// Tokens that a request alone would have, without scheduler and cache.
    pub fn alone(&self) -> Vec<u32> {
        let mut tokens = self.tokens[..self.prompt].to_vec();
        for _ in 0..self.max_tokens {
            tokens.push(chosen(tokens.iter().fold(0, fingerprint)));
        }
        tokens
    }
}

/// Fingerprint of all tokens up to `token`; `before` is that of the tokens before it.
fn fingerprint(before: u64, token: &u32) -> u64 {
    (before.rotate_left(5) ^ u64::from(token + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The next token: one of three, so that requests often go on alike.
fn chosen(fingerprint: u64) -> u32 {
    (fingerprint >> 32) as u32 % 3
}

/// Runs all requests to their end, checking every step; returns the order in which they finished.
pub fn run(
    scheduler: &mut Scheduler,
    limits: EngineLimits,
    requests: &mut [Reference],
) -> Result<Vec<usize>, TestCaseError> {
    // Between two finishes the oldest sequence gains a token a step, or waits while the budget serves it first.
    let bound: usize = requests.iter().map(|request| 4 * (request.prompt + request.max_tokens)).sum::<usize>() + 10;
    let bound = bound * requests.len().max(1);
    let mut simulation = Simulation { scheduler, limits, requests, memory: HashMap::new(), finished: Vec::new() };
    for _ in 0..=bound {
        if simulation.scheduler.is_done() {
            return Ok(simulation.finished);
        }
        simulation.step()?;
    }
    Err(TestCaseError::fail("no end in sight"))
}

/// Requests on their way through a scheduler.
struct Simulation<'a> {
    scheduler: &'a mut Scheduler,
    limits: EngineLimits,
    requests: &'a mut [Reference],
    /// Fingerprints by slot.
    memory: HashMap<u32, u64>,
    finished: Vec<usize>,
}

/// Sequences that get a token, and the token, if one can be chosen.
type Sampled = Vec<(SequenceIndex, Option<u32>)>;

impl Simulation<'_> {
    fn step(&mut self) -> Result<(), TestCaseError> {
        let running_before: HashSet<usize> = self.scheduler.running.iter().copied().collect();
        for (index, request) in self.requests.iter().enumerate().filter(|(index, _)| !self.finished.contains(index)) {
            prop_assert_eq!(self.scheduler.sequence(index).tokens(), &request.tokens);
        }
        self.scheduler.schedule();
        let SchedulerOutput { scheduled, preempted, .. } = self.scheduler.batch();
        let scheduled = scheduled.clone();
        for &victim in preempted {
            self.requests[victim].cached = 0;
            self.requests[victim].preemptions += 1;
        }
        self.check_choice(&scheduled)?;
        self.note_reuse(&scheduled, &running_before)?;
        self.check_blocks()?;
        let sampled = scheduled.iter().map(|scheduled| self.compute(scheduled)).collect::<Result<Vec<_>, _>>()?;
        self.advance(sampled.into_iter().flatten().collect())
    }

    /// Limits hold, decodes come first, and the oldest unfinished request makes progress.
    fn check_choice(&self, scheduled: &[ScheduledSequence]) -> Result<(), TestCaseError> {
        let tokens: usize = scheduled.iter().map(|scheduled| scheduled.num_scheduled_tokens).sum();
        prop_assert!(tokens > 0, "a step without work");
        prop_assert!(tokens <= self.limits.max_num_batched_tokens, "the budget does not hold");
        prop_assert!(scheduled.len() <= self.limits.max_num_seqs);
        let in_step: HashSet<usize> = scheduled.iter().map(|scheduled| scheduled.sequence).collect();
        prop_assert_eq!(in_step.len(), scheduled.len(), "a sequence is scheduled twice in one step");
        let preempted = &self.scheduler.batch().preempted;
        prop_assert!(preempted.iter().all(|victim| !in_step.contains(victim)), "a victim is computed");
        let first_prefill = scheduled.iter().position(|scheduled| !scheduled.decodes).unwrap_or(scheduled.len());
        prop_assert!(scheduled[first_prefill..].iter().all(|scheduled| !scheduled.decodes), "decodes come first");
        let oldest = (0..self.requests.len()).find(|index| !self.finished.contains(index)).unwrap();
        let starved = !in_step.contains(&oldest) && scheduled.len() < self.limits.max_num_batched_tokens;
        prop_assert!(!starved || self.requests[oldest].again, "the oldest request waits");
        Ok(())
    }

    /// Takes in how many tokens of sequences that begin to run were found in the cache.
    fn note_reuse(
        &mut self,
        scheduled: &[ScheduledSequence],
        running_before: &HashSet<usize>,
    ) -> Result<(), TestCaseError> {
        let pool = self.scheduler.pool();
        for scheduled in scheduled.iter().filter(|scheduled| !running_before.contains(&scheduled.sequence)) {
            let reused = scheduled.num_computed_tokens;
            prop_assert!(reused % pool.block_size() == 0 && (pool.caches_prefixes() || reused == 0));
            self.requests[scheduled.sequence].cached = reused;
        }
        for admission in &self.scheduler.batch().admitted {
            prop_assert_eq!(self.requests[admission.sequence].preemptions, 0);
            prop_assert_eq!(self.requests[admission.sequence].cached, admission.reused_tokens);
        }
        Ok(())
    }

    /// A block is in several tables only where it holds the same tokens in all of them.
    fn check_blocks(&self) -> Result<(), TestCaseError> {
        let pool = self.scheduler.pool();
        let mut blocks: HashMap<u32, &[u32]> = HashMap::new();
        for (index, request) in self.requests.iter().enumerate() {
            for (place, block) in self.scheduler.sequence(index).table().indices().enumerate() {
                let end = (place + 1) * pool.block_size();
                let content = request.tokens.get(..end).filter(|_| end <= request.cached).unwrap_or_default();
                if let Some(other) = blocks.insert(block, content) {
                    let same = pool.caches_prefixes() && !content.is_empty() && other == content;
                    prop_assert!(same, "a block is held twice");
                }
            }
        }
        prop_assert_eq!(blocks.len(), pool.used());
        Ok(())
    }

    /// Writes the fingerprints of a sequence's scheduled tokens, and chooses its next token where there is to be one.
    fn compute(
        &mut self,
        scheduled: &ScheduledSequence,
    ) -> Result<Option<(SequenceIndex, Option<u32>)>, TestCaseError> {
        let request = &mut self.requests[scheduled.sequence];
        let (table, block_size) =
            (self.scheduler.sequence(scheduled.sequence).table(), self.scheduler.pool().block_size());
        let start = scheduled.num_computed_tokens;
        prop_assert_eq!(start, request.cached, "tokens are computed in order, without gaps");
        request.cached = scheduled.positions().end;
        let known = request.prompt + request.generated;
        prop_assert!(request.cached <= known);
        prop_assert_eq!(scheduled.samples, request.cached == known);
        let slot = |position: usize| table.slot(position, block_size);
        let mut read = match start {
            0 => Some(0),
            _ => slot(start - 1).and_then(|slot| self.memory.get(&slot).copied()),
        };
        let mut before = (0..start).map(|position| self.memory[&slot(position).unwrap()]);
        let spoilt =
            before.any(|content| content == SPOILT_CONTENT) || request.tokens[scheduled.positions()].contains(&SPOILT);
        for position in scheduled.positions() {
            let written = match spoilt {
                true => SPOILT_CONTENT,
                false => fingerprint(read.unwrap(), &request.tokens[position]),
            };
            self.memory.insert(slot(position).expect("no slot for a token"), written);
            read = Some(written);
        }
        let token = (!spoilt).then(|| chosen(read.unwrap()));
        Ok(scheduled.samples.then_some((scheduled.sequence, token)))
    }

    /// Hands the outcome of the step to the scheduler.
    fn advance(&mut self, sampled: Sampled) -> Result<(), TestCaseError> {
        for (index, _) in sampled.iter().filter(|(_, token)| token.is_none()) {
            let request = &mut self.requests[*index];
            match self.scheduler.fail(*index) {
                Failed::Over(output) => {
                    let position = request.tokens.len();
                    prop_assert_eq!(output.error, Some(NotFinite { request: RequestId(0), position }));
                    request.failed = true;
                    self.finished.push(*index);
                }
                Failed::ComputedAgain => {
                    prop_assert!(self.scheduler.pool().caches_prefixes() && !request.again, "once is enough");
                    request.again = true;
                }
            }
            request.cached = 0;
        }
        self.scheduler.advance();
        for (index, token) in sampled.into_iter().filter_map(|(index, token)| Some((index, token?))) {
            let request = &mut self.requests[index];
            request.generated += 1;
            request.tokens.push(token);
            let reason = self.scheduler.append(index, token);
            prop_assert_eq!(reason.is_some(), request.generated == request.max_tokens);
            if let Some(reason) = reason {
                let output = self.scheduler.finish(index, reason);
                prop_assert_eq!(&output.tokens, &request.tokens[request.prompt..]);
                self.finished.push(index);
            }
        }
        Ok(())
    }
}

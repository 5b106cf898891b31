//! A reference model of requests, which knows only what each request asked for, and the run of a scheduler against it.
//!
//! The model computes, in place of keys and values, a fingerprint of all tokens up to a position, and writes it into the
//! slot that the scheduler names. The next token is chosen by what is read there: a block that is given away too early,
//! shared wrongly or recomputed wrongly changes tokens.
//!
//! Steps are computed in the order in which they are decided; their tokens may be told one step later, as of a device that runs
//! ahead. A token that nobody was told is read where the step before left it.
//!
//! A token that is [`SPOILT`] stands for one whose keys and values are not finite. As attention on a GPU may do, it spoils
//! all that is computed in one step with it, what comes before it included; and whoever reads that has no next token.

use std::collections::{HashMap, HashSet, VecDeque};

use flashjob_event::RequestId;
use proptest::prelude::*;

use crate::schedule::limits::EngineLimits;
use crate::schedule::request::{NotFinite, Request};
use crate::schedule::scheduler::{Failed, Scheduler};
use crate::schedule::scheduler_output::{ScheduledSequence, SchedulerOutput};

/// Expected state of one request, tracked outside the scheduler.
pub struct Reference {
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    pub prompt: usize,
    pub max_tokens: usize,
    stops: bool,
    pub generated: usize,
    /// Tokens that were chosen and are not told.
    pending: usize,
    /// Tokens in the cache, as the steps said.
    cached: usize,
    pub preemptions: usize,
    /// It has failed with blocks that others may have computed.
    again: bool,
    pub failed: bool,
}

/// A token, and what is found in slots that such tokens have spoilt. None is ever chosen.
pub const SPOILT: u32 = 9;
/// A token that is chosen now and then.
pub const STOP: u32 = 2;
const SPOILT_CONTENT: u64 = u64::MAX;

impl Reference {
    /// A request that has not run.
    pub fn new(tokens: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt: tokens.len(),
            tokens,
            max_tokens,
            stops: false,
            generated: 0,
            pending: 0,
            cached: 0,
            preemptions: 0,
            again: false,
            failed: false,
        }
    }

    /// The same, which ends with the first [`STOP`] where it `stops`.
    pub fn stopping(self, stops: bool) -> Self {
        Self { stops, ..self }
    }

    /// True where no next token can be chosen.
    pub fn is_spoilt(&self) -> bool {
        self.tokens.contains(&SPOILT)
    }

    /// Tokens that a request alone would have, without scheduler and cache.
    pub fn alone(&self) -> Vec<u32> {
        let mut tokens = self.tokens[..self.prompt].to_vec();
        for _ in 0..self.max_tokens {
            let token = chosen(tokens.iter().fold(0, fingerprint));
            tokens.push(token);
            if self.stops && token == STOP {
                break;
            }
        }
        tokens
    }

    /// It has lost its blocks, and tokens that nobody was told.
    fn restart(&mut self) {
        (self.cached, self.pending) = (0, 0);
    }
}

/// Requests on their way to a scheduler.
pub struct Arrivals {
    requests: VecDeque<Request>,
    /// Each comes some steps after it was first asked for.
    late: bool,
    asked: usize,
}

impl Arrivals {
    /// Without requests, which come one by one.
    pub fn new(late: bool) -> Self {
        Self { requests: VecDeque::new(), late, asked: 0 }
    }

    /// One more, behind all others.
    pub fn push(&mut self, request: Request) {
        self.requests.push_back(request);
    }

    /// The next one, if it has come; a scheduler without work waits for it.
    fn next(&mut self, is_idle: bool) -> Option<Request> {
        self.asked += 1;
        (is_idle || !self.late || self.asked.is_multiple_of(3)).then(|| self.requests.pop_front())?
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

/// Runs all requests to their end, checking every step, with tokens told `most_ahead` steps late at most; returns the order in which they
/// finished.
pub fn run(
    scheduler: &mut Scheduler,
    arrivals: &mut Arrivals,
    limits: EngineLimits,
    requests: &mut [Reference],
    most_ahead: usize,
) -> Result<Vec<usize>, TestCaseError> {
    // Between two finishes the oldest sequence gains a token a step, or waits while the budget serves it first.
    let bound: usize = requests.iter().map(|request| 4 * (request.prompt + request.max_tokens)).sum::<usize>() + 10;
    let bound = bound * requests.len().max(1);
    let mut simulation = Simulation {
        scheduler,
        arrivals,
        limits,
        requests,
        most_ahead,
        memory: HashMap::new(),
        chosen: Vec::new(),
        under_way: VecDeque::new(),
        finished: Vec::new(),
    };
    for _ in 0..=bound {
        if simulation.scheduler.is_done() && simulation.arrivals.requests.is_empty() {
            simulation.tell_all_but(0)?;
            return Ok(simulation.finished);
        }
        simulation.step()?;
    }
    Err(TestCaseError::fail("no end in sight"))
}

/// Requests on their way through a scheduler.
struct Simulation<'a> {
    scheduler: &'a mut Scheduler,
    arrivals: &'a mut Arrivals,
    limits: EngineLimits,
    requests: &'a mut [Reference],
    most_ahead: usize,
    /// Fingerprints by slot.
    memory: HashMap<u32, u64>,
    /// Tokens that the last step chose, where one could be chosen.
    chosen: Vec<Option<u32>>,
    /// Steps whose tokens are not told, and these.
    under_way: VecDeque<(Vec<ScheduledSequence>, Vec<Option<u32>>)>,
    finished: Vec<usize>,
}

impl Simulation<'_> {
    fn step(&mut self) -> Result<(), TestCaseError> {
        for (index, request) in self.requests.iter().enumerate() {
            let sequence = self.scheduler.sequences.get(index);
            prop_assert!(sequence.is_none_or(|sequence| sequence.tokens() == request.tokens));
        }
        if self.scheduler.is_short_of_blocks() {
            self.tell_all_but(0)?;
        }
        let running_before: HashSet<usize> = self.scheduler.running.iter().copied().collect();
        let is_idle = self.scheduler.is_done();
        self.scheduler.schedule(self.arrivals.requests.len(), &mut || self.arrivals.next(is_idle));
        let new = self.scheduler.waiting.iter().filter(|&&index| !self.scheduler.sequence(index).has_run);
        prop_assert!(new.count() <= 1, "more was taken than there was room for");
        let SchedulerOutput { scheduled, preempted, .. } = self.scheduler.batch();
        prop_assert!(preempted.is_empty() || self.under_way.is_empty(), "tokens are lost");
        let scheduled = scheduled.clone();
        for &victim in preempted {
            self.requests[victim].restart();
            self.requests[victim].preemptions += 1;
        }
        if scheduled.is_empty() {
            prop_assert!(!self.under_way.is_empty() && preempted.is_empty(), "a step without work");
            return self.tell_all_but(0);
        }
        self.check_choice(&scheduled)?;
        self.note_reuse(&scheduled, &running_before)?;
        self.check_blocks()?;
        let chosen = scheduled.iter().map(|scheduled| self.compute(scheduled)).collect::<Result<Vec<_>, _>>()?;
        self.chosen = chosen.into_iter().flatten().collect();
        let mut step = Vec::new();
        self.scheduler.begin(&mut step);
        prop_assert_eq!(&step, &scheduled);
        self.under_way.push_back((step, self.chosen.clone()));
        self.tell_all_but(self.most_ahead)
    }

    /// Tells the tokens of all steps but the last `kept`.
    fn tell_all_but(&mut self, kept: usize) -> Result<(), TestCaseError> {
        while self.under_way.len() > kept
            && let Some((step, chosen)) = self.under_way.pop_front()
        {
            self.tell(&step, &chosen)?;
        }
        Ok(())
    }

    /// Limits hold, decodes come first, and the oldest unfinished request makes progress.
    fn check_choice(&self, scheduled: &[ScheduledSequence]) -> Result<(), TestCaseError> {
        let tokens: usize = scheduled.iter().map(|scheduled| scheduled.num_scheduled_tokens).sum();
        prop_assert!(tokens <= self.limits.max_num_batched_tokens, "the budget does not hold");
        prop_assert!(scheduled.len() <= self.limits.max_num_seqs);
        let in_step: HashSet<usize> = scheduled.iter().map(|scheduled| scheduled.sequence).collect();
        prop_assert_eq!(in_step.len(), scheduled.len(), "a sequence is scheduled twice in one step");
        let preempted = &self.scheduler.batch().preempted;
        prop_assert!(preempted.iter().all(|victim| !in_step.contains(victim)), "a victim is computed");
        let first_prefill = scheduled.iter().position(|scheduled| !scheduled.decodes).unwrap_or(scheduled.len());
        prop_assert!(scheduled[first_prefill..].iter().all(|scheduled| !scheduled.decodes), "decodes come first");
        // Of those that have come.
        let oldest = (0..self.requests.len()).find(|&index| self.scheduler.sequences.get(index).is_some()).unwrap();
        let waits = !in_step.contains(&oldest) && !self.scheduler.sequence(oldest).is_complete();
        let starved = waits && scheduled.len() < self.limits.max_num_batched_tokens;
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
            let Some(sequence) = self.scheduler.sequences.get(index) else { continue };
            for (place, block) in sequence.table().indices().enumerate() {
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

    /// Writes the fingerprints of a sequence's scheduled tokens, and chooses its next token where there is to be one: `None` in it where
    /// none can be chosen.
    fn compute(&mut self, scheduled: &ScheduledSequence) -> Result<Option<Option<u32>>, TestCaseError> {
        let request = &mut self.requests[scheduled.sequence];
        let (table, block_size) =
            (self.scheduler.sequence(scheduled.sequence).table(), self.scheduler.pool().block_size());
        let start = scheduled.num_computed_tokens;
        prop_assert_eq!(start, request.cached, "tokens are computed in order, without gaps");
        request.cached = scheduled.positions().end;
        let known = request.tokens.len() + request.pending;
        prop_assert!(request.cached <= known);
        prop_assert_eq!(scheduled.samples, request.cached == known);
        prop_assert!(known < request.prompt + request.max_tokens, "more is computed than was asked for");
        request.pending += usize::from(scheduled.samples);
        // Of a token that nobody was told, it reads what the step before has left.
        let place = self.scheduler.sequence(scheduled.sequence).place() as usize;
        let untold = |position: usize| (position == known - 1).then(|| self.chosen[place]).flatten();
        let tokens: Vec<Option<u32>> =
            scheduled.positions().map(|at| request.tokens.get(at).copied().or_else(|| untold(at))).collect();
        let slot = |position: usize| table.slot(position, block_size);
        let mut read = match start {
            0 => Some(0),
            _ => slot(start - 1).and_then(|slot| self.memory.get(&slot).copied()),
        };
        let mut before = (0..start).map(|position| self.memory[&slot(position).unwrap()]);
        let spoilt = before.any(|content| content == SPOILT_CONTENT)
            || tokens.iter().any(|token| token.is_none_or(|token| token == SPOILT));
        for (position, token) in scheduled.positions().zip(tokens) {
            let written = match token {
                Some(token) if !spoilt => fingerprint(read.unwrap(), &token),
                _ => SPOILT_CONTENT,
            };
            self.memory.insert(slot(position).expect("no slot for a token"), written);
            read = Some(written);
        }
        let token = (!spoilt).then(|| chosen(read.unwrap()));
        Ok(scheduled.samples.then_some(token))
    }

    /// Hands the outcome of a step to the scheduler.
    fn tell(&mut self, step: &[ScheduledSequence], chosen: &[Option<u32>]) -> Result<(), TestCaseError> {
        let sampled = step.iter().filter(|scheduled| scheduled.samples).zip(chosen);
        for (scheduled, _) in sampled.clone().filter(|(_, token)| token.is_none()) {
            if !self.scheduler.stands(scheduled) {
                continue;
            }
            let index = scheduled.sequence;
            let request = &mut self.requests[index];
            match self.scheduler.fail(index) {
                Failed::Over(output) => {
                    let position = request.tokens.len();
                    prop_assert_eq!(output.error, Some(NotFinite { request: RequestId(0), position }.into()));
                    request.failed = true;
                    self.finished.push(index);
                }
                Failed::ComputedAgain => {
                    prop_assert!(self.scheduler.pool().caches_prefixes() && !request.again, "once is enough");
                    request.again = true;
                }
            }
            request.restart();
        }
        self.scheduler.advance(step);
        for (scheduled, token) in sampled {
            if !self.scheduler.stands(scheduled) {
                continue;
            }
            let (index, token) = (scheduled.sequence, token.expect("a sequence without a next token has failed"));
            let request = &mut self.requests[index];
            request.generated += 1;
            request.pending -= 1;
            request.tokens.push(token);
            let reason = self.scheduler.append(index, token);
            let ends = request.generated == request.max_tokens || (request.stops && token == STOP);
            prop_assert_eq!(reason.is_some(), ends);
            if let Some(reason) = reason {
                let output = self.scheduler.finish(index, reason);
                prop_assert_eq!(&output.tokens, &request.tokens[request.prompt..]);
                self.finished.push(index);
            }
        }
        Ok(())
    }
}

//! The scheduler against a reference model that knows only what each request asked for.
//!
//! The model computes, in place of keys and values, a fingerprint of all tokens up to a position, and writes it into the
//! slot that the scheduler names. The next token is chosen by what is read there: a block that is given away too early,
//! shared wrongly or recomputed wrongly changes tokens.
//!
//! A token that is [`SPOILT`] stands for one whose keys and values are not finite. As attention on a GPU may do, it spoils
//! all that is computed in one step with it, what comes before it included; and whoever reads that has no next token.

use super::*;
use crate::schedule::request::NotFinite;
use flashjob_config::Sampling;
use flashjob_event::RequestId;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

/// Expected state of one request, tracked outside the scheduler.
struct Reference {
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    prompt: usize,
    max_tokens: usize,
    generated: usize,
    /// Tokens in the cache, as the steps said.
    cached: usize,
    preemptions: usize,
    /// It has failed with blocks that others may have computed.
    again: bool,
    failed: bool,
}

/// A token, and what is found in slots that such tokens have spoilt. None is ever chosen.
const SPOILT: u32 = 9;
const SPOILT_CONTENT: u64 = u64::MAX;

fn limits(max_num_seqs: usize, max_num_batched_tokens: usize) -> EngineLimits {
    EngineLimits {
        max_num_seqs,
        max_num_batched_tokens,
        max_model_len: 1000,
        block_size: 1,
        num_blocks: 0,
        num_spare_blocks: 0,
        vocab_size: 10,
    }
}

fn scheduler(max_num_seqs: usize, max_num_batched_tokens: usize, blocks: u32, block_size: usize) -> Scheduler {
    Scheduler::new(limits(max_num_seqs, max_num_batched_tokens), BlockPool::new(blocks, block_size))
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };
    Request { id: RequestId(0), prompt, max_tokens, stop_tokens: Vec::new(), sampling, seed: 0 }
}

impl Reference {
    fn new(tokens: Vec<u32>, max_tokens: usize) -> Self {
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

    fn is_spoilt(&self) -> bool {
        self.tokens.contains(&SPOILT)
    }

    /// Tokens that a request alone would have, without scheduler and cache.
    fn alone(&self) -> Vec<u32> {
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
fn run(
    scheduler: &mut Scheduler,
    limits: EngineLimits,
    requests: &mut [Reference],
) -> Result<Vec<usize>, TestCaseError> {
    let mut finished: Vec<usize> = Vec::new();
    // Between two finishes the oldest sequence gains a token a step, or waits while the budget serves it first.
    let bound: usize = requests.iter().map(|request| 4 * (request.prompt + request.max_tokens)).sum::<usize>() + 10;
    let mut steps = 0;
    // By slot.
    let mut memory: HashMap<u32, u64> = HashMap::new();
    while !scheduler.is_done() {
        steps += 1;
        prop_assert!(steps <= bound * requests.len().max(1), "no end in sight");
        let block_size = scheduler.pool().block_size();
        let caching = scheduler.pool().caches_prefixes();
        let running_before: HashSet<usize> = scheduler.running.iter().copied().collect();
        for (index, request) in requests.iter().enumerate().filter(|(index, _)| !finished.contains(index)) {
            prop_assert_eq!(scheduler.sequence(index).tokens(), &request.tokens);
        }
        scheduler.schedule();
        let batch = scheduler.batch();
        let tokens: usize = batch.scheduled.iter().map(|scheduled| scheduled.num_scheduled_tokens).sum();
        prop_assert!(tokens > 0, "a step without work");
        prop_assert!(tokens <= limits.max_num_batched_tokens, "the budget does not hold");
        prop_assert!(batch.scheduled.len() <= limits.max_num_seqs);
        for &victim in &batch.preempted {
            requests[victim].cached = 0;
            requests[victim].preemptions += 1;
        }
        let in_step: HashSet<usize> = batch.scheduled.iter().map(|scheduled| scheduled.sequence).collect();
        prop_assert_eq!(in_step.len(), batch.scheduled.len(), "a sequence is scheduled twice in one step");
        prop_assert!(batch.preempted.iter().all(|victim| !in_step.contains(victim)), "a victim is computed");
        let first_prefill =
            batch.scheduled.iter().position(|scheduled| !scheduled.decodes).unwrap_or(batch.scheduled.len());
        prop_assert!(batch.scheduled[first_prefill..].iter().all(|scheduled| !scheduled.decodes), "decodes come first");

        // The oldest unfinished request always makes progress.
        let oldest = (0..requests.len()).find(|index| !finished.contains(index)).unwrap();
        let starved = !in_step.contains(&oldest) && batch.scheduled.len() < limits.max_num_batched_tokens;
        prop_assert!(!starved || requests[oldest].again, "the oldest request waits");

        for scheduled in batch.scheduled.iter().filter(|scheduled| !running_before.contains(&scheduled.sequence)) {
            let reused = scheduled.num_computed_tokens;
            prop_assert!(reused % block_size == 0 && (caching || reused == 0));
            requests[scheduled.sequence].cached = reused;
        }
        for admission in &batch.admitted {
            prop_assert_eq!(requests[admission.sequence].preemptions, 0);
            prop_assert_eq!(requests[admission.sequence].cached, admission.reused_tokens);
        }

        let mut blocks: HashMap<u32, &[u32]> = HashMap::new();
        for (index, request) in requests.iter().enumerate() {
            for (place, block) in scheduler.sequence(index).table().indices().enumerate() {
                let end = (place + 1) * block_size;
                let content = request.tokens.get(..end).filter(|_| end <= request.cached).unwrap_or_default();
                if let Some(other) = blocks.insert(block, content) {
                    prop_assert!(caching && !content.is_empty() && other == content, "a block is held twice");
                }
            }
        }
        prop_assert_eq!(blocks.len(), scheduler.pool().used());

        let mut sampled = Vec::new();
        for scheduled in &batch.scheduled {
            let request = &mut requests[scheduled.sequence];
            let table = scheduler.sequence(scheduled.sequence).table();
            prop_assert_eq!(
                scheduled.num_computed_tokens,
                request.cached,
                "tokens are computed in order, without gaps"
            );
            request.cached = scheduled.positions().end;
            let known = request.prompt + request.generated;
            prop_assert!(request.cached <= known);
            prop_assert_eq!(scheduled.samples, request.cached == known);
            let slot = |position: usize| table.slot(position, block_size);
            let mut read = match scheduled.num_computed_tokens {
                0 => Some(0),
                start => slot(start - 1).and_then(|slot| memory.get(&slot).copied()),
            };
            let before = (0..scheduled.num_computed_tokens).map(|position| memory[&slot(position).unwrap()]);
            let spoilt = before.into_iter().any(|content| content == SPOILT_CONTENT)
                || request.tokens[scheduled.positions()].contains(&SPOILT);
            for position in scheduled.positions() {
                let written = match spoilt {
                    true => SPOILT_CONTENT,
                    false => fingerprint(read.unwrap(), &request.tokens[position]),
                };
                memory.insert(slot(position).expect("no slot for a token"), written);
                read = Some(written);
            }
            if scheduled.samples {
                sampled.push((scheduled.sequence, (!spoilt).then(|| chosen(read.unwrap()))));
            }
        }
        for (index, _) in sampled.iter().filter(|(_, token)| token.is_none()) {
            match scheduler.fail(*index) {
                Failed::Over(output) => {
                    let position = requests[*index].tokens.len();
                    prop_assert_eq!(output.error, Some(NotFinite { request: RequestId(0), position }));
                    requests[*index].failed = true;
                    finished.push(*index);
                }
                Failed::ComputedAgain => {
                    prop_assert!(caching && !requests[*index].again, "once is enough");
                    requests[*index].again = true;
                }
            }
            requests[*index].cached = 0;
        }
        scheduler.advance();
        for (index, token) in sampled.into_iter().filter_map(|(index, token)| Some((index, token?))) {
            requests[index].generated += 1;
            requests[index].tokens.push(token);
            let reason = scheduler.append(index, token);
            prop_assert_eq!(reason.is_some(), requests[index].generated == requests[index].max_tokens);
            if let Some(reason) = reason {
                let output = scheduler.finish(index, reason);
                prop_assert_eq!(&output.tokens, &requests[index].tokens[requests[index].prompt..]);
                finished.push(index);
            }
        }
    }
    Ok(finished)
}

proptest! {
    #[test]
    fn all_requests_finish_and_every_rule_holds(
        // Prompts are the first tokens of one of three texts, so that many begin alike; some have a token that is spoilt.
        lengths in prop::collection::vec((0..3u32, 1..60usize, 1..40usize, prop::option::weighted(0.2, 0..60usize)), 1..24),
        caching in any::<bool>(),
        max_num_seqs in 1..10usize,
        max_num_batched_tokens in 1..80usize,
        block_size in 1..20usize,
        spare_blocks in 0..12u32,
    ) {
        let longest = lengths.iter().map(|(_, prompt, new, _)| (prompt + new - 1).div_ceil(block_size)).max().unwrap();
        let blocks = longest as u32 + spare_blocks;
        let limits = limits(max_num_seqs, max_num_batched_tokens);
        let pool = if caching { BlockPool::with_prefix_cache } else { BlockPool::new };
        let mut scheduler = Scheduler::new(limits, pool(blocks, block_size));
        let mut requests = Vec::new();
        for (text, prompt, max_tokens, spoilt) in lengths {
            let mut tokens: Vec<u32> = (text..).map(|number| number / 2 % 3).take(prompt).collect();
            if let Some(place) = spoilt {
                tokens[place % prompt] = SPOILT;
            }
            scheduler.add(request(tokens.clone(), max_tokens)).unwrap();
            requests.push(Reference::new(tokens, max_tokens));
        }
        let finished = run(&mut scheduler, limits, &mut requests)?;
        prop_assert_eq!(finished.len(), requests.len());
        for request in &requests {
            prop_assert_eq!(request.failed, request.is_spoilt(), "a request fails for what another one asked");
            if request.failed {
                prop_assert_eq!(request.generated, 0);
                continue;
            }
            prop_assert_eq!(request.generated, request.max_tokens);
            prop_assert_eq!(&request.tokens, &request.alone(), "preemption, recomputation or reuse changed a token");
        }
        prop_assert_eq!(requests[0].preemptions, 0, "the oldest is never preempted");
        prop_assert_eq!(scheduler.pool().free(), scheduler.pool().total(), "blocks leak");
    }

    /// Equal requests finish in the order in which they came, whatever the pressure.
    #[test]
    fn equal_requests_finish_first_come_first_served(
        count in 1..20usize, prompt in 1..40usize, max_tokens in 1..30usize, caching in any::<bool>(),
        max_num_seqs in 1..8usize, budget in 1..64usize, block_size in 1..16usize, spare_blocks in 0..20u32,
    ) {
        let blocks = (prompt + max_tokens - 1).div_ceil(block_size) as u32 + spare_blocks;
        let limits = limits(max_num_seqs, budget);
        let pool = if caching { BlockPool::with_prefix_cache } else { BlockPool::new };
        let mut scheduler = Scheduler::new(limits, pool(blocks, block_size));
        let mut requests = Vec::new();
        for _ in 0..count {
            scheduler.add(request(vec![0; prompt], max_tokens)).unwrap();
            requests.push(Reference::new(vec![0; prompt], max_tokens));
        }
        let finished = run(&mut scheduler, limits, &mut requests)?;
        prop_assert_eq!(finished, (0..count).collect::<Vec<_>>());
    }
}

/// Gives each of these a token, and ends those that have all of theirs.
fn append_to_all(scheduler: &mut Scheduler, sampled: &[SequenceIndex]) {
    for &index in sampled {
        if let Some(reason) = scheduler.append(index, index as u32) {
            scheduler.finish(index, reason);
        }
    }
}

#[test]
fn a_tight_cache_preempts_the_youngest_and_recomputes_what_it_generated() {
    // Two sequences of 4 + 8 tokens in 5 blocks of 4: at its longest each needs 3.
    let mut scheduler = scheduler(4, 64, 5, 4);
    scheduler.add(request(vec![0; 4], 8)).unwrap();
    scheduler.add(request(vec![0; 4], 8)).unwrap();
    let mut generated = [0usize; 2];
    let mut recomputed = None;
    while !scheduler.is_done() {
        let batch = scheduler.schedule();
        assert!(batch.preempted.iter().all(|&victim| victim == 1));
        let mut sampled = Vec::new();
        for scheduled in &batch.scheduled {
            if scheduled.sequence == 1 && scheduled.num_computed_tokens == 0 && generated[1] > 0 {
                recomputed = Some((scheduled.num_scheduled_tokens, generated[1]));
            }
            generated[scheduled.sequence] += usize::from(scheduled.samples);
            sampled.extend(scheduled.samples.then_some(scheduled.sequence));
        }
        scheduler.advance();
        append_to_all(&mut scheduler, &sampled);
    }
    let (length, had) = recomputed.expect("the youngest was not preempted");
    assert_eq!(length, 4 + had);
    assert_eq!(generated, [8, 8]);
}

#[test]
fn a_preempted_sequence_finds_its_own_blocks_again() {
    // Two sequences of 4 + 8 tokens in 4 blocks of 4: the oldest takes one of the two that the youngest had filled, the
    // last one.
    let mut scheduler = Scheduler::new(limits(4, 64), BlockPool::with_prefix_cache(4, 4));
    [1, 2].into_iter().for_each(|token| assert!(scheduler.add(request(vec![token; 4], 8)).is_ok()));
    let mut starts = Vec::new();
    let mut preempted = false;
    while !scheduler.is_done() {
        let batch = scheduler.schedule();
        preempted |= !batch.preempted.is_empty();
        let youngest = batch.scheduled.iter().filter(|scheduled| scheduled.sequence == 1 && !scheduled.decodes);
        starts.extend(youngest.map(|scheduled| scheduled.num_computed_tokens));
        let sampled: Vec<usize> =
            batch.scheduled.iter().filter(|scheduled| scheduled.samples).map(|scheduled| scheduled.sequence).collect();
        scheduler.advance();
        append_to_all(&mut scheduler, &sampled);
    }
    assert!(preempted);
    assert_eq!(starts, [0, 4], "the first of its blocks was still there");
}

#[test]
fn a_request_that_can_never_fit_is_refused_before_the_run() {
    let mut scheduler = scheduler(4, 64, 4, 8);
    assert_eq!(scheduler.needed_blocks(30, 4), Err(NeverFits { needed_tokens: 33, cache_tokens: 32 }));
    assert_eq!(scheduler.add(request(vec![0; 30], 3)), Ok(0));
    assert_eq!(scheduler.needed_blocks(usize::MAX, 2).map_err(|error| error.cache_tokens), Err(32));
}

//! The scheduler against a reference model that knows only what each request asked for.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

/// What must be true of one request, tracked outside the scheduler.
struct Reference {
    prompt: usize,
    max_new: usize,
    generated: usize,
    /// Tokens in the cache, as the steps said.
    cached: usize,
    preemptions: usize,
}

fn scheduler(max_num_seqs: usize, max_num_batched_tokens: usize, blocks: u32, block_tokens: usize) -> Scheduler {
    Scheduler::new(Limits { max_num_seqs, max_num_batched_tokens }, BlockPool::new(blocks, block_tokens))
}

/// Runs all requests to their end, checking every step; returns the order in which they finished.
fn run(scheduler: &mut Scheduler, limits: Limits, requests: &mut [Reference]) -> Result<Vec<usize>, TestCaseError> {
    let mut finished: Vec<usize> = Vec::new();
    // Between two finishes the oldest sequence gains a token a step, or waits while the budget serves it first.
    let bound: usize = requests.iter().map(|request| 2 * (request.prompt + request.max_new)).sum::<usize>() + 10;
    let mut steps = 0;
    while !scheduler.is_done() {
        steps += 1;
        prop_assert!(steps <= bound * requests.len().max(1), "no end in sight");
        let block_tokens = scheduler.pool().block_tokens();
        scheduler.schedule();
        let batch = scheduler.batch();
        let tokens: usize = batch.chunks.iter().map(|chunk| chunk.positions.len()).sum();
        prop_assert!(tokens > 0, "a step without work");
        prop_assert!(tokens <= limits.max_num_batched_tokens, "the budget does not hold");
        prop_assert!(batch.chunks.len() <= limits.max_num_seqs);
        for &victim in &batch.preempted {
            requests[victim].cached = 0;
            requests[victim].preemptions += 1;
        }
        let in_step: HashSet<usize> = batch.chunks.iter().map(|chunk| chunk.sequence).collect();
        prop_assert_eq!(in_step.len(), batch.chunks.len(), "a sequence has two chunks in one step");
        prop_assert!(batch.preempted.iter().all(|victim| !in_step.contains(victim)), "a victim is computed");
        let first_prefill = batch.chunks.iter().position(|chunk| !chunk.decodes).unwrap_or(batch.chunks.len());
        prop_assert!(batch.chunks[first_prefill..].iter().all(|chunk| !chunk.decodes), "decodes come first");

        // The oldest unfinished request always makes progress.
        let oldest = (0..requests.len()).find(|index| !finished.contains(index)).unwrap();
        let starved = !in_step.contains(&oldest) && batch.chunks.len() < limits.max_num_batched_tokens;
        prop_assert!(!starved, "the oldest request waits");

        let mut blocks = HashSet::new();
        for index in 0..requests.len() {
            for block in scheduler.table(index).indices() {
                prop_assert!(blocks.insert(block), "a block is held twice");
            }
        }
        prop_assert_eq!(blocks.len(), scheduler.pool().used());

        for chunk in &batch.chunks {
            let request = &mut requests[chunk.sequence];
            prop_assert_eq!(chunk.positions.start, request.cached, "tokens are computed in order, without gaps");
            request.cached = chunk.positions.end;
            let known = request.prompt + request.generated;
            prop_assert!(request.cached <= known);
            prop_assert_eq!(chunk.samples, request.cached == known);
            request.generated += usize::from(chunk.samples);
            let last = chunk.positions.end - 1;
            prop_assert!(scheduler.table(chunk.sequence).slot(last, block_tokens).is_some(), "no slot for a token");
        }
        let sampled: Vec<usize> =
            batch.chunks.iter().filter(|chunk| chunk.samples).map(|chunk| chunk.sequence).collect();
        scheduler.advance();
        for index in sampled {
            if requests[index].generated == requests[index].max_new {
                scheduler.finish(index);
                finished.push(index);
            }
        }
    }
    Ok(finished)
}

proptest! {
    #[test]
    fn all_requests_finish_and_every_rule_holds(
        lengths in prop::collection::vec((1..60usize, 1..40usize), 1..24),
        max_num_seqs in 1..10usize,
        max_num_batched_tokens in 1..80usize,
        block_tokens in 1..20usize,
        spare_blocks in 0..12u32,
    ) {
        let longest = lengths.iter().map(|(prompt, new)| (prompt + new - 1).div_ceil(block_tokens)).max().unwrap();
        let blocks = longest as u32 + spare_blocks;
        let mut scheduler = scheduler(max_num_seqs, max_num_batched_tokens, blocks, block_tokens);
        let mut requests = Vec::new();
        for (prompt, max_new) in lengths {
            scheduler.add(prompt, max_new).unwrap();
            requests.push(Reference { prompt, max_new, generated: 0, cached: 0, preemptions: 0 });
        }
        let limits = Limits { max_num_seqs, max_num_batched_tokens };
        let finished = run(&mut scheduler, limits, &mut requests)?;
        prop_assert_eq!(finished.len(), requests.len());
        prop_assert!(requests.iter().all(|request| request.generated == request.max_new));
        prop_assert_eq!(requests[0].preemptions, 0, "the oldest is never preempted");
        prop_assert_eq!(scheduler.pool().free(), scheduler.pool().total(), "blocks leak");
    }

    /// Equal requests finish in the order in which they came, whatever the pressure.
    #[test]
    fn equal_requests_finish_first_come_first_served(
        count in 1..20usize, prompt in 1..40usize, max_new in 1..30usize,
        max_num_seqs in 1..8usize, budget in 1..64usize, block_tokens in 1..16usize, spare_blocks in 0..20u32,
    ) {
        let blocks = (prompt + max_new - 1).div_ceil(block_tokens) as u32 + spare_blocks;
        let mut scheduler = scheduler(max_num_seqs, budget, blocks, block_tokens);
        let mut requests = Vec::new();
        for _ in 0..count {
            scheduler.add(prompt, max_new).unwrap();
            requests.push(Reference { prompt, max_new, generated: 0, cached: 0, preemptions: 0 });
        }
        let limits = Limits { max_num_seqs, max_num_batched_tokens: budget };
        let finished = run(&mut scheduler, limits, &mut requests)?;
        prop_assert_eq!(finished, (0..count).collect::<Vec<_>>());
    }
}

#[test]
fn a_tight_cache_preempts_the_youngest_and_recomputes_what_it_generated() {
    // Two sequences of 4 + 8 tokens in 5 blocks of 4: at its longest each needs 3.
    let mut scheduler = scheduler(4, 64, 5, 4);
    scheduler.add(4, 8).unwrap();
    scheduler.add(4, 8).unwrap();
    let mut generated = [0usize; 2];
    let mut recomputed = None;
    while !scheduler.is_done() {
        let batch = scheduler.schedule();
        assert!(batch.preempted.iter().all(|&victim| victim == 1));
        let mut finished = Vec::new();
        for chunk in &batch.chunks {
            if chunk.sequence == 1 && chunk.positions.start == 0 && generated[1] > 0 {
                recomputed = Some((chunk.positions.len(), generated[1]));
            }
            generated[chunk.sequence] += usize::from(chunk.samples);
            if generated[chunk.sequence] == 8 {
                finished.push(chunk.sequence);
            }
        }
        scheduler.advance();
        finished.into_iter().for_each(|index| scheduler.finish(index));
    }
    let (length, had) = recomputed.expect("the youngest was not preempted");
    assert_eq!(length, 4 + had);
    assert_eq!(generated, [8, 8]);
}

#[test]
fn a_request_that_can_never_fit_is_refused_before_the_run() {
    let mut scheduler = scheduler(4, 64, 4, 8);
    assert_eq!(scheduler.add(30, 4), Err(NeverFits { needed_tokens: 33, cache_tokens: 32 }));
    assert_eq!(scheduler.add(30, 3), Ok(0));
    assert_eq!(scheduler.add(usize::MAX, 2).map_err(|error| error.cache_tokens), Err(32));
}

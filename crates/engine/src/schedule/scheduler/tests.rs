//! The scheduler against a reference model of requests, and single cases.

mod reference;
mod replayed_steps;

use super::*;
use proptest::prelude::*;
use reference::{Arrivals, Reference, SPOILT, STOP, run};

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
    let limits = limits(max_num_seqs, max_num_batched_tokens);
    Scheduler::new(limits, BlockPool::new(blocks, block_size), AdmissionPolicy::Immediate)
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request::greedy(0, prompt, max_tokens)
}

fn admission() -> impl Strategy<Value = AdmissionPolicy> {
    prop_oneof![Just(AdmissionPolicy::Immediate), Just(AdmissionPolicy::InGroups)]
}

proptest! {
    #[test]
    fn all_requests_finish_and_every_rule_holds(
        // Prompts are the first tokens of one of three texts, so that many begin alike; some have a token that is spoilt.
        lengths in prop::collection::vec((0..3u32, 1..60usize, 1..40usize, prop::option::weighted(0.2, 0..60usize)), 1..24),
        late in any::<bool>(),
        stops in any::<bool>(),
        most_ahead in 0..2usize,
        caching in any::<bool>(),
        admission in admission(),
        max_num_seqs in 1..10usize,
        max_num_batched_tokens in 1..80usize,
        block_size in 1..20usize,
        spare_blocks in 0..12u32,
    ) {
        let longest = lengths.iter().map(|(_, prompt, new, _)| (prompt + new - 1).div_ceil(block_size)).max().unwrap();
        let blocks = longest as u32 + spare_blocks;
        let limits = limits(max_num_seqs, max_num_batched_tokens);
        let pool = if caching { BlockPool::with_prefix_cache } else { BlockPool::new };
        let mut scheduler = Scheduler::new(limits, pool(blocks, block_size), admission);
        let (mut arrivals, mut requests) = (Arrivals::new(late), Vec::new());
        for (text, prompt, max_tokens, spoilt) in lengths {
            let mut tokens: Vec<u32> = (text..).map(|number| number / 2 % 3).take(prompt).collect();
            if let Some(place) = spoilt {
                tokens[place % prompt] = SPOILT;
            }
            let stop_tokens = if stops { vec![STOP] } else { Vec::new() };
            arrivals.push(Request { stop_tokens, ..request(tokens.clone(), max_tokens) });
            requests.push(Reference::new(tokens, max_tokens).stopping(stops));
        }
        let finished = run(&mut scheduler, &mut arrivals, limits, &mut requests, most_ahead)?;
        prop_assert_eq!(finished.len(), requests.len());
        for request in &requests {
            prop_assert_eq!(request.failed, request.is_spoilt(), "a request fails for what another one asked");
            if request.failed {
                prop_assert_eq!(request.generated, 0);
                continue;
            }
            prop_assert!(stops || request.generated == request.max_tokens);
            prop_assert_eq!(&request.tokens, &request.alone(), "preemption, recomputation or reuse changed a token");
        }
        prop_assert_eq!(requests[0].preemptions, 0, "the oldest is never preempted");
        prop_assert_eq!(scheduler.pool().free(), scheduler.pool().total(), "blocks leak");
    }

    /// Equal requests finish in the order in which they came, whatever the pressure.
    #[test]
    fn equal_requests_finish_first_come_first_served(
        count in 1..20usize, prompt in 1..40usize, max_tokens in 1..30usize, caching in any::<bool>(),
        admission in admission(), most_ahead in 0..2usize,
        max_num_seqs in 1..8usize, budget in 1..64usize, block_size in 1..16usize, spare_blocks in 0..20u32,
    ) {
        let blocks = (prompt + max_tokens - 1).div_ceil(block_size) as u32 + spare_blocks;
        let limits = limits(max_num_seqs, budget);
        let pool = if caching { BlockPool::with_prefix_cache } else { BlockPool::new };
        let mut scheduler = Scheduler::new(limits, pool(blocks, block_size), admission);
        let (mut arrivals, mut requests) = (Arrivals::new(false), Vec::new());
        for _ in 0..count {
            arrivals.push(request(vec![0; prompt], max_tokens));
            requests.push(Reference::new(vec![0; prompt], max_tokens));
        }
        let finished = run(&mut scheduler, &mut arrivals, limits, &mut requests, most_ahead)?;
        prop_assert_eq!(finished, (0..count).collect::<Vec<_>>());
    }
}

/// Computes the step that was scheduled: gives sequences their tokens, and ends those that have all of theirs.
fn compute(scheduler: &mut Scheduler) {
    let mut step = Vec::new();
    scheduler.begin(&mut step);
    scheduler.advance(&step);
    for index in step.iter().filter(|scheduled| scheduled.samples).map(|scheduled| scheduled.sequence) {
        if let Some(reason) = scheduler.append(index, index as u32) {
            scheduler.finish(index, reason);
        }
    }
}

#[test]
fn a_tight_cache_preempts_the_youngest_and_recomputes_what_it_generated() {
    // Two sequences of 4 + 8 tokens in 5 blocks of 4: at its longest each needs 3.
    let mut scheduler = scheduler(4, 64, 5, 4);
    let mut arrivals = vec![request(vec![0; 4], 8); 2];
    let mut generated = [0usize; 2];
    let mut recomputed = None;
    while !(arrivals.is_empty() && scheduler.is_done()) {
        let batch = scheduler.schedule(arrivals.len(), &mut || arrivals.pop());
        assert!(batch.preempted.iter().all(|&victim| victim == 1));
        for scheduled in &batch.scheduled {
            if scheduled.sequence == 1 && scheduled.num_computed_tokens == 0 && generated[1] > 0 {
                recomputed = Some((scheduled.num_scheduled_tokens, generated[1]));
            }
            generated[scheduled.sequence] += usize::from(scheduled.samples);
        }
        compute(&mut scheduler);
    }
    let (length, had) = recomputed.expect("the youngest was not preempted");
    assert_eq!(length, 4 + had);
    assert_eq!(generated, [8, 8]);
}

#[test]
fn a_preempted_sequence_finds_its_own_blocks_again() {
    // Two sequences of 4 + 8 tokens in 4 blocks of 4: the oldest takes one of the two that the youngest had filled, the
    // last one.
    let pool = BlockPool::with_prefix_cache(4, 4);
    let mut scheduler = Scheduler::new(limits(4, 64), pool, AdmissionPolicy::Immediate);
    let mut arrivals = [1, 2].into_iter().map(|token| request(vec![token; 4], 8));
    let mut starts = Vec::new();
    let mut preempted = false;
    while starts.is_empty() || !scheduler.is_done() {
        let batch = scheduler.schedule(arrivals.len(), &mut || arrivals.next());
        preempted |= !batch.preempted.is_empty();
        let youngest = batch.scheduled.iter().filter(|scheduled| scheduled.sequence == 1 && !scheduled.decodes);
        starts.extend(youngest.map(|scheduled| scheduled.num_computed_tokens));
        compute(&mut scheduler);
    }
    assert!(preempted);
    assert_eq!(starts, [0, 4], "the first of its blocks was still there");
}

#[test]
fn a_request_is_asked_for_only_when_there_is_room_to_run_it() {
    // Two places, and blocks for two sequences of 8 tokens and their next one.
    let mut scheduler = scheduler(2, 64, 6, 4);
    let mut asked = 0;
    let mut steps = Vec::new();
    while asked < 40 {
        scheduler.schedule(1, &mut || {
            asked += 1;
            Some(request(vec![0; 8], 4))
        });
        steps.push((asked, scheduler.running()));
        assert_eq!(scheduler.waiting(), 0);
        compute(&mut scheduler);
    }
    // Each pair runs for four steps.
    assert_eq!(steps[..9], [(2, 2), (2, 2), (2, 2), (2, 2), (4, 2), (4, 2), (4, 2), (4, 2), (6, 2)]);
}

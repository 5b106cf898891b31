//! The order in which waiting requests run: what it saves, and that it changes no token.

use std::num::NonZeroUsize;

use flashjob_config::{EngineConfig, Schedule};
use flashjob_engine::{Output, Request};
use flashjob_event::Fact;

use super::{config, load, request, serve};

/// Prefixes, each of three blocks, and requests with each of them.
const PREFIXES: u32 = 6;
const REQUESTS: u32 = 5;
const PREFIX_TOKENS: u32 = 96;

/// Requests with a few prefixes in turn, so that neighbours have different ones.
fn interleaved() -> Vec<Request> {
    let prompt = |id: u32| {
        let prefix = (0..PREFIX_TOKENS).map(move |i| (i * 7 + id % PREFIXES * 13 + 1) % 90);
        prefix.chain((0..9).map(move |i| (i * 5 + id * 11 + 2) % 90)).collect::<Vec<u32>>()
    };
    (0..PREFIXES * REQUESTS).map(|id| request(id, &prompt(id), 4 + id as usize % 3)).collect()
}

fn found(facts: &[Fact]) -> u32 {
    facts.iter().map(|fact| if let Fact::PrefixSearched { hit_tokens, .. } = fact { *hit_tokens } else { 0 }).sum()
}

fn scheduled(facts: &[Fact]) -> Vec<u32> {
    let first = |fact: &Fact| if let Fact::RequestScheduled { request } = fact { Some(request.0) } else { None };
    facts.iter().filter_map(first).collect()
}

fn sorted(mut outputs: Vec<Output>) -> Vec<Output> {
    outputs.sort_by_key(|output| output.id);
    outputs
}

/// In a cache that has room for two or three prefixes beside what runs.
#[test]
fn prompts_that_begin_alike_are_found_where_they_run_one_after_the_other() {
    let any = load("llama-gqa", &config());
    let block_bytes = any.report().kv_cache_bytes / any.report().kv_blocks as u64;
    let small = EngineConfig {
        prefix_caching: true,
        max_num_seqs: NonZeroUsize::new(2),
        kv_cache_memory_bytes: Some(16 * block_bytes),
        ..config()
    };
    let run = |schedule| {
        let mut engine = load("llama-gqa", &EngineConfig { schedule, ..small.clone() });
        let (outputs, facts) = serve(&mut engine, interleaved()).unwrap();
        (sorted(outputs), found(&facts), scheduled(&facts))
    };
    let (outputs, in_input_order, order) = run(Schedule::Input);
    assert_eq!(order, (0..PREFIXES * REQUESTS).collect::<Vec<_>>());
    let (grouped, in_groups, order) = run(Schedule::Prefix);
    assert_eq!(grouped, outputs, "other tokens");
    // All but the first of each group find the whole prefix.
    assert_eq!(in_groups, PREFIXES * (REQUESTS - 1) * PREFIX_TOKENS);
    assert!(
        in_input_order * 4 < in_groups,
        "{in_input_order} tokens found in the order of the input, {in_groups} in groups"
    );
    let groups: Vec<u32> = order.chunks(REQUESTS as usize).map(|group| group[0] % PREFIXES).collect();
    assert_eq!(groups, (0..PREFIXES).collect::<Vec<_>>());
}

/// Requests that begin alike and come at once: those behind the first wait until its beginning is computed, and find it.
#[test]
fn a_beginning_that_is_being_computed_is_waited_for() {
    let shared = |id: u32| request(id, &interleaved()[0].prompt[..PREFIX_TOKENS as usize + id as usize + 1], 3);
    let requests: Vec<Request> = (0..4).map(shared).collect();
    let mut engine = load("llama-gqa", &EngineConfig { prefix_caching: true, ..config() });
    let (outputs, facts) = serve(&mut engine, requests.clone()).unwrap();
    assert_eq!(found(&facts), 3 * PREFIX_TOKENS);
    let (expected, facts) = serve(&mut load("llama-gqa", &config()), requests).unwrap();
    assert_eq!((sorted(outputs), found(&facts)), (sorted(expected), 0));
}

#[test]
fn the_longest_run_first_where_that_is_wanted() {
    let one_by_one = EngineConfig { max_num_seqs: NonZeroUsize::new(1), schedule: Schedule::Longest, ..config() };
    let lengths = [(5, 3), (40, 2), (5, 30), (1, 1), (20, 22)];
    let requests = lengths.into_iter().zip(0..).map(|((prompt, output), id)| request(id, &[7].repeat(prompt), output));
    let mut engine = load("llama-gqa", &one_by_one);
    assert_eq!(engine.report().schedule, Schedule::Longest);
    let (_, facts) = serve(&mut engine, requests.collect()).unwrap();
    // Two of 42 tokens each: the one that came first.
    assert_eq!(scheduled(&facts), [1, 4, 2, 0, 3]);
}

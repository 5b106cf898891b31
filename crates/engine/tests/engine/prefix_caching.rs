//! With prefix caching fewer tokens are computed, and the very bits of all logits stay what they are without it.

use std::num::NonZeroUsize;

use flashjob_config::{DtypeChoice, EngineConfig};
use flashjob_engine::{Engine, Request};
use flashjob_event::Fact;
use proptest::prelude::*;

use super::invariance::{RANDOM, preemptions, watched};
use super::{GREEDY, config, load, request, serve};
use crate::model::golden::MODELS;

const BLOCK: usize = 32;

/// Requests by text, length and output: those of one text begin alike.
fn requests(lengths: &[(u32, usize, usize)]) -> Vec<Request> {
    let make = |(&(text, length, max_new), id): (&(u32, usize, usize), u32)| {
        let prompt: Vec<u32> = (0..length as u32).map(|i| (i * 7 + text * 13 + 1) % 90).collect();
        let sampling = if id % 2 == 0 { GREEDY } else { RANDOM };
        Request { sampling, seed: 11, ..request(id, &prompt, max_new) }
    };
    lengths.iter().zip(0..).map(make).collect()
}

/// Prompt tokens found, by request.
fn hits(facts: &[Fact]) -> Vec<u32> {
    let mut hits = vec![None; facts.iter().filter(|fact| matches!(fact, Fact::RequestQueued { .. })).count()];
    for fact in facts {
        if let &Fact::PrefixSearched { request, hit_tokens, .. } = fact {
            assert!(hits[request.0 as usize].replace(hit_tokens).is_none(), "a prompt is searched for once");
        }
    }
    hits.into_iter().map(|hits| hits.unwrap_or(0)).collect()
}

fn prefilled(facts: &[Fact]) -> usize {
    let tokens = |fact: &Fact| match fact {
        Fact::StepFinished { prefill_tokens, .. } => *prefill_tokens,
        _ => 0,
    };
    facts.iter().map(tokens).sum()
}

fn block_bytes(engine: &Engine) -> u64 {
    engine.report().kv_cache_bytes / engine.report().kv_blocks as u64
}

#[test]
fn equal_beginnings_are_computed_once_and_give_the_same_bits() {
    // A whole prompt again, one that ends with a block, one that goes on, another text, one shorter than a block.
    let lengths = [(0, 100, 5), (0, 100, 5), (0, 96, 5), (0, 140, 5), (1, 100, 5), (0, 31, 5)];
    for dtype in [DtypeChoice::Float32, DtypeChoice::Bfloat16] {
        for name in MODELS {
            let one_by_one = EngineConfig { max_num_seqs: NonZeroUsize::new(1), dtype, ..config() };
            let mut off = load(name, &one_by_one);
            let mut on = load(name, &EngineConfig { prefix_caching: true, ..one_by_one });
            assert_eq!((off.report().prefix_caching, on.report().prefix_caching), (false, true));
            let (expected, expected_bits, facts) = watched(&mut off, requests(&lengths));
            assert!(!facts.iter().any(|fact| matches!(fact, Fact::PrefixSearched { .. })));
            let all: usize = lengths.iter().map(|(_, length, _)| length).sum();
            assert_eq!(prefilled(&facts), all);
            // Each run begins with nothing to find, so the second one says the same as the first.
            for _ in 0..2 {
                let (outputs, bits, facts) = watched(&mut on, requests(&lengths));
                assert_eq!(hits(&facts), [0, 96, 64, 96, 0, 0]);
                assert_eq!(prefilled(&facts), all - (96 + 64 + 96));
                assert_eq!(outputs, expected, "{name} {dtype:?}: other tokens");
                assert!(bits == expected_bits, "{name} {dtype:?}: other bits");
            }
        }
    }
}

#[test]
fn what_was_generated_is_found_again() {
    let mut engine = load("llama-gqa", &EngineConfig { prefix_caching: true, ..config() });
    let answer = serve(&mut engine, requests(&[(0, 20, 60)])).unwrap().0.remove(0).tokens;
    let first = requests(&[(0, 20, 60)]).remove(0);
    let again = [&first.prompt[..], &answer[..], &[1, 2, 3]].concat();
    let one_by_one = EngineConfig { prefix_caching: true, max_num_seqs: NonZeroUsize::new(1), ..config() };
    let (_, facts) = serve(&mut load("llama-gqa", &one_by_one), vec![first, request(1, &again, 2)]).unwrap();
    // Of 20 + 60 tokens the last was never fed back.
    assert_eq!(hits(&facts), [0, 64]);
}

#[test]
fn a_preempted_request_recomputes_less_and_changes_no_bit() {
    let lengths = [(0, 40, 80), (0, 64, 70), (1, 33, 90), (0, 100, 60), (1, 90, 40)];
    let mut alone = load("llama-gqa", &config());
    let (expected, expected_bits, _) = watched(&mut alone, requests(&lengths));
    let tiny = EngineConfig { kv_cache_memory_bytes: Some(6 * block_bytes(&alone)), ..config() };
    let mut computed = Vec::new();
    for prefix_caching in [false, true] {
        let mut engine = load("llama-gqa", &EngineConfig { prefix_caching, ..tiny.clone() });
        let (outputs, bits, facts) = watched(&mut engine, requests(&lengths));
        assert!(preemptions(&facts) > 0, "prefix caching {prefix_caching}");
        assert_eq!(outputs, expected, "prefix caching {prefix_caching}: other tokens");
        assert!(bits == expected_bits, "prefix caching {prefix_caching}: other bits");
        computed.push(prefilled(&facts) + hits(&facts).iter().sum::<u32>() as usize);
    }
    assert!(computed[1] < computed[0], "blocks of preempted requests were not found: {computed:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the limits, whatever begins alike, with caching and without: the bits of each request alone, and no step
    /// beyond its limits.
    #[test]
    fn neither_limits_nor_reuse_nor_preemption_change_a_bit(
        lengths in prop::collection::vec((0..2u32, 1..120usize, 1..60usize), 1..7),
        model in 0..MODELS.len(),
        sixteen_bits in any::<bool>(),
        max_num_seqs in 1..8usize,
        max_num_batched_tokens in 1..200usize,
        spare_blocks in 0..4usize,
    ) {
        let dtype = if sixteen_bits { DtypeChoice::Bfloat16 } else { DtypeChoice::Float32 };
        let wide = EngineConfig { dtype, max_num_seqs: NonZeroUsize::new(1), ..config() };
        let mut alone = load(MODELS[model], &wide);
        let (expected, expected_bits, _) = watched(&mut alone, requests(&lengths));
        let longest = lengths.iter().map(|(_, length, max_new)| (length + max_new).div_ceil(BLOCK)).max().unwrap();
        // A cache of one block serves no more than the original length of one of the models, which then rotates otherwise.
        let longest = longest.max(2);
        let limits = EngineConfig {
            kv_cache_memory_bytes: Some((longest + spare_blocks) as u64 * block_bytes(&alone)),
            max_num_seqs: NonZeroUsize::new(max_num_seqs),
            max_num_batched_tokens: NonZeroUsize::new(max_num_batched_tokens),
            ..wide
        };
        for prefix_caching in [false, true] {
            let mut engine = load(MODELS[model], &EngineConfig { prefix_caching, ..limits.clone() });
            let (outputs, bits, facts) = watched(&mut engine, requests(&lengths));
            prop_assert_eq!(&outputs, &expected, "prefix caching {}: other tokens", prefix_caching);
            prop_assert!(bits == expected_bits, "prefix caching {}: other bits", prefix_caching);
            for (hits, (_, length, _)) in hits(&facts).into_iter().zip(&lengths) {
                prop_assert!(hits as usize <= (length - 1) / BLOCK * BLOCK);
            }
            for fact in &facts {
                if let Fact::StepFinished { prefill_tokens, decode_tokens, running, kv_blocks_used, .. } = fact {
                    prop_assert!(prefill_tokens + decode_tokens <= max_num_batched_tokens);
                    prop_assert!(*running <= max_num_seqs && *kv_blocks_used <= longest + spare_blocks);
                }
            }
        }
    }
}

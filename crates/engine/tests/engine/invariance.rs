//! A request's tokens, and the very bits of the logits they are chosen from, do not depend on what else runs.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use flashjob_config::{DtypeChoice, EngineConfig, Sampling};
use flashjob_engine::{Engine, Output, Request};
use flashjob_event::Fact;

use super::{config, load, request, serve};
use crate::model::golden::MODELS;

/// Bits of logits by request and position of the token that was chosen.
pub type Bits = BTreeMap<(u32, usize), Vec<u32>>;

pub const RANDOM: Sampling = Sampling { temperature: 0.9, top_p: 0.95, top_k: NonZeroUsize::new(40) };

/// Seven requests of different lengths, some of them longer than a block.
fn requests() -> Vec<Request> {
    let prompt = |id: u32, length: u32| -> Vec<u32> { (0..length).map(|i| (i * 7 + id * 13 + 1) % 90).collect() };
    let lengths = [3, 40, 1, 65, 17, 32, 90];
    let make = |(&length, id): (&u32, u32)| {
        let sampling = if id % 2 == 0 { super::GREEDY } else { RANDOM };
        Request { sampling, seed: 11, ..request(id, &prompt(id, length), 70 + id as usize * 3) }
    };
    lengths.iter().zip(0..).map(make).collect()
}

/// Outputs, the logits behind each token, and what was stated on the way.
pub fn watched(engine: &mut Engine, requests: Vec<Request>) -> (Vec<Output>, Bits, Vec<Fact>) {
    let bits: Arc<Mutex<Bits>> = Arc::default();
    let seen = bits.clone();
    engine.watch_logits(Some(Box::new(move |request, position, logits| {
        let row = logits.iter().map(|logit| logit.to_bits()).collect();
        let before = seen.lock().unwrap().insert((request.0, position), row);
        assert!(before.is_none(), "a token was chosen twice");
    })));
    let (outputs, facts) = serve(engine, requests).unwrap();
    engine.watch_logits(None);
    let bits = std::mem::take(&mut *bits.lock().unwrap());
    (outputs, bits, facts)
}

pub fn preemptions(facts: &[Fact]) -> usize {
    facts.iter().filter(|fact| matches!(fact, Fact::RequestPreempted { .. })).count()
}

#[test]
fn alone_together_in_chunks_or_after_preemption_a_request_computes_the_same_bits() {
    for dtype in [DtypeChoice::Float32, DtypeChoice::Bfloat16] {
        for name in MODELS {
            let base = EngineConfig { dtype, ..config() };
            let mut engine = load(name, &base);
            let (mut alone, mut alone_bits) = (Vec::new(), Bits::new());
            for request in requests() {
                let (outputs, bits, _) = watched(&mut engine, vec![request]);
                alone.extend(outputs);
                alone_bits.extend(bits);
            }
            let expected: usize = requests().iter().map(|request| request.max_tokens).sum();
            assert_eq!(alone_bits.len(), expected);

            // Six blocks: what the longest request needs, 90 + 88 - 1 tokens of 32. Others grow by more than one block.
            let block_bytes = engine.report().kv_cache_bytes / engine.report().kv_blocks as u64;
            let number = NonZeroUsize::new;
            for (how, config) in [
                ("in a batch of 7", base.clone()),
                ("in chunks", EngineConfig { max_num_batched_tokens: number(5), ..base.clone() }),
                ("by another number of threads", EngineConfig { threads: number(3), ..base.clone() }),
                ("two at a time", EngineConfig { max_num_seqs: number(2), ..base.clone() }),
                ("in a tiny cache", EngineConfig { kv_cache_memory_bytes: Some(6 * block_bytes), ..base.clone() }),
            ] {
                let (outputs, bits, facts) = watched(&mut load(name, &config), requests());
                let preemptions = preemptions(&facts);
                assert_eq!(outputs, alone, "{name} {dtype:?}: other tokens {how}");
                assert!(bits == alone_bits, "{name} {dtype:?}: other bits {how}");
                assert_eq!(preemptions > 0, how == "in a tiny cache", "{preemptions} preemptions {how}");
            }
        }
    }
}

#[test]
fn sampling_is_reproducible_and_a_seed_changes_it() {
    let mut engine = load("llama-gqa", &config());
    let run = |engine: &mut Engine, seed: u64| {
        let requests = requests().into_iter().map(|request| Request { sampling: RANDOM, seed, ..request }).collect();
        serve(engine, requests).unwrap().0
    };
    let first = run(&mut engine, 1);
    assert_eq!(run(&mut engine, 1), first);
    assert_ne!(run(&mut engine, 2), first);
}

#[test]
fn requests_that_differ_by_number_alone_draw_differently() {
    let mut engine = load("llama-gqa", &config());
    let prompt = [5, 6, 7];
    let warm = Sampling { temperature: 2.0, top_p: 1.0, top_k: None };
    let requests = (0..2).map(|id| Request { sampling: warm, ..request(id, &prompt, 30) }).collect();
    let (outputs, _) = serve(&mut engine, requests).unwrap();
    assert_ne!(outputs[0].tokens, outputs[1].tokens);
}

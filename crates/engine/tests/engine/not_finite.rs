//! A request whose logits are not finite ends by itself: others neither end with it nor change a token.

use std::num::NonZeroUsize;

use flashjob_config::EngineConfig;
use flashjob_engine::{NotFinite, Output, Request};
use flashjob_event::{Fact, FinishReason, RequestId};

use super::invariance::{RANDOM, preemptions};
use super::{GREEDY, config, load, request, serve};
use crate::model::altered::Altered;

/// Its head is not tied to its embedding.
const FIXTURE: &str = "llama-gqa";

/// No prompt here has it by itself, and nobody generates it.
const BAD: u32 = 200;

/// A model to which `token` is no number.
fn spoilt(token: u32) -> Altered {
    let model = Altered::of(FIXTURE);
    model.spoil_embedding(token);
    model
}

fn unchecked() -> EngineConfig {
    EngineConfig { validate_weights: false, ..config() }
}

/// Ten requests, greedy and random ones. Their beginnings are equal by twos, one of which may have [`BAD`] at its end or further up.
fn requests() -> Vec<Request> {
    let make = |id: u32| {
        let length = 20 + id / 2 * 25;
        let mut prompt: Vec<u32> = (0..length).map(|i| (i * 7 + id / 2 * 13 + 1) % 90).collect();
        match id {
            1 | 5 => *prompt.last_mut().unwrap() = BAD,
            8 => prompt[50] = BAD,
            _ => {}
        }
        let sampling = if id % 4 < 2 { GREEDY } else { RANDOM };
        Request { sampling, seed: 11, ..request(id, &prompt, 40 + id as usize * 3) }
    };
    (0..10).map(make).collect()
}

fn is_bad(request: &Request) -> bool {
    request.prompt.contains(&BAD)
}

fn failed(request: &Request, tokens: Vec<u32>) -> Output {
    let position = request.prompt.len() + tokens.len();
    let error = Some(NotFinite { request: request.id, position }.into());
    let (logprobs, reason) = (Vec::new(), FinishReason::Error);
    Output { id: request.id, tokens, logprobs, reason, stop_token: None, stop_texts: None, error }
}

/// Tokens of the good ones where there is no bad one, and an error for each of the others.
fn expected(name: &str) -> Vec<Output> {
    let good = requests().into_iter().filter(|request| !is_bad(request)).collect();
    let mut expected = serve(&mut load(name, &unchecked()), good).unwrap().0;
    assert!(expected.iter().all(|output| output.error.is_none() && !output.tokens.contains(&BAD)));
    expected.extend(requests().iter().filter(|request| is_bad(request)).map(|request| failed(request, Vec::new())));
    expected.sort_by_key(|output| output.id);
    expected
}

/// Running, waiting, and blocks in use after the last step.
fn left_over(facts: &[Fact]) -> (usize, usize, usize) {
    let last = facts.iter().rev().find_map(|fact| match fact {
        Fact::StepFinished { running, waiting, kv_blocks_used, .. } => Some((*running, *waiting, *kv_blocks_used)),
        _ => None,
    });
    last.unwrap()
}

#[test]
fn others_have_the_tokens_that_they_have_without_it_and_its_blocks_are_free() {
    let model = spoilt(BAD);
    let name = model.path().to_str().unwrap();
    let expected = expected(name);
    let block_bytes = {
        let facts = load(name, &unchecked());
        facts.report().kv_cache_bytes / facts.report().kv_blocks as u64
    };
    let number = NonZeroUsize::new;
    for prefix_caching in [false, true] {
        let base = EngineConfig { prefix_caching, ..unchecked() };
        for (how, config) in [
            ("in a batch", base.clone()),
            ("in chunks", EngineConfig { max_num_batched_tokens: number(33), ..base.clone() }),
            ("one at a time", EngineConfig { max_num_seqs: number(1), ..base.clone() }),
            // Blocks that held what is no number are written over in part, and read by others.
            ("in a tiny cache", EngineConfig { kv_cache_memory_bytes: Some(6 * block_bytes), ..base.clone() }),
            ("on two ranks", EngineConfig { tensor_parallel_size: number(2), ..base.clone() }),
        ] {
            let how = format!("{how}, prefix caching {prefix_caching}");
            let mut engine = load(name, &config);
            // The second time in a cache that the first one has used.
            for _ in 0..2 {
                let (outputs, facts) = serve(&mut engine, requests()).unwrap();
                assert_eq!(outputs, expected, "{how}");
                assert_eq!(left_over(&facts), (0, 0, 0), "{how}");
            }
        }
    }
}

#[test]
fn tokens_from_before_are_kept() {
    let asked = request(0, &[3, 1, 4, 1, 5], 40);
    let whole = serve(&mut load(FIXTURE, &unchecked()), vec![asked.clone()]).unwrap().0.remove(0).tokens;
    // A token that it generates itself, and that is read with the next step.
    let first = |token: u32| whole.iter().position(|&other| other == token).unwrap();
    let place = (3..39).find(|&place| first(whole[place]) == place && !asked.prompt.contains(&whole[place])).unwrap();
    let model = spoilt(whole[place]);
    let mut engine = load(model.path().to_str().unwrap(), &unchecked());
    let (outputs, facts) = serve(&mut engine, vec![asked.clone()]).unwrap();
    let kept = whole[..=place].to_vec();
    let stated = facts.iter().filter(|fact| matches!(fact, Fact::TokenGenerated { .. })).count();
    assert_eq!(stated, kept.len(), "no token without a fact, no fact without a token");
    assert_eq!(outputs, [failed(&asked, kept)]);
}

#[test]
fn what_was_computed_for_it_is_not_found_by_others() {
    let model = spoilt(BAD);
    let beginning: Vec<u32> = (0..64).map(|i| (i * 7 + 1) % 90).collect();
    let going_on = |id, tokens: &[u32]| request(id, &[&beginning[..], tokens].concat(), 4);
    // Its first chunk is in the cache before the last one shows that it is bad.
    let config = EngineConfig {
        prefix_caching: true,
        max_num_seqs: NonZeroUsize::new(1),
        max_num_batched_tokens: NonZeroUsize::new(64),
        ..unchecked()
    };
    let bad = |id| going_on(id, &[5, BAD, 6]);
    for (requests, hits) in [
        (vec![bad(0), going_on(1, &[7, 8])], vec![0, 0]),
        // What another one has computed stays.
        (vec![going_on(0, &[7, 8]), bad(1), going_on(2, &[9])], vec![0, 64, 64]),
    ] {
        let mut engine = load(model.path().to_str().unwrap(), &config);
        let (outputs, facts) = serve(&mut engine, requests.clone()).unwrap();
        let found: Vec<u32> = facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::PrefixSearched { hit_tokens, .. } => Some(*hit_tokens),
                _ => None,
            })
            .collect();
        assert_eq!(found, hits);
        for (output, request) in outputs.iter().zip(&requests) {
            assert_eq!(output.error.is_some(), is_bad(request), "{output:?}");
        }
        assert_eq!(preemptions(&facts), 1, "it is computed once more, without what is in the cache");
        let stated = facts.iter().any(|fact| matches!(fact, Fact::TokenGenerated { request: RequestId(id), .. } if is_bad(&requests[*id as usize])));
        assert!(!stated, "a token of a request that has none");
    }
}

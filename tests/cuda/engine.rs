//! The engine on a stand-in GPU: the numbers of every family, and the way from prefill to decode.

use std::num::NonZeroUsize;

use flashjob::config::{DtypeChoice, EngineConfig, Sampling};
use flashjob::engine::{Engine, Error, Placement};
use flashjob::event::{Events, Fact};
use tokio_util::sync::CancellationToken;

use crate::engine::{config, open, request, serve};
use crate::model::golden::{MODELS, prompts, relative_error};

fn on_gpu(dtype: DtypeChoice) -> EngineConfig {
    EngineConfig { dtype, ..config() }
}

fn load(name: &str, config: &EngineConfig) -> Engine {
    Engine::load_on(Placement::Gpus, &open(name), config, &Events::default(), &CancellationToken::new()).unwrap()
}

/// Units are those of the format's rounding, here of all activations but the residual stream.
#[test]
fn logits_are_those_of_transformers_within_16_bits() {
    for (dtype, unit) in [(DtypeChoice::Bfloat16, (-8f32).exp2()), (DtypeChoice::Float16, (-11f32).exp2())] {
        for name in MODELS {
            let mut engine = load(name, &on_gpu(dtype));
            assert_eq!(engine.facts().device, "cuda");
            let mut largest: f32 = 0.0;
            for prompt in prompts(name) {
                let computed = engine.logits(&prompt.tokens, &CancellationToken::new()).unwrap();
                for (position, reference) in &prompt.logits {
                    largest = largest.max(relative_error(reference, &computed[*position]));
                }
            }
            let units = largest / unit;
            // Gemma 2 normalises what its layers add, and with it the rounding of small numbers.
            let bound = if name.starts_with("gemma2") { 16.0 } else { 12.0 };
            assert!((0.01..bound).contains(&units), "{name} in {dtype:?}: an error of {units} units");
        }
    }
}

/// Mixed lengths, more of them than the cache holds at a time: each token is the one that a prefill of all before it gives.
#[test]
fn decode_and_preemption_change_no_token() {
    for (name, prefix_caching) in [("llama-gqa", false), ("mistral-window", false), ("gemma3-two-ropes", true)] {
        let blocks = 9;
        let mut small = on_gpu(DtypeChoice::Float16);
        small.max_num_batched_tokens = NonZeroUsize::new(48);
        small.prefix_caching = prefix_caching;
        let facts = load(name, &small).facts().clone();
        let block_bytes = facts.kv_cache_bytes / facts.kv_blocks as u64;
        small.kv_cache_memory_bytes = Some(blocks * block_bytes);
        let mut engine = load(name, &small);
        let lengths = [1, 70, 33, 5, 64, 32, 17];
        let prompt = |index: usize| (0..lengths[index]).map(|i| ((i * 7 + index * 13) % 60) as u32).collect::<Vec<_>>();
        let requests = (0..lengths.len()).map(|index| request(index as u32, &prompt(index), 40)).collect();
        let (outputs, facts) = serve(&mut engine, requests).unwrap();
        let preempted = facts.iter().filter(|fact| matches!(fact, Fact::RequestPreempted { .. })).count();
        assert!(preempted > 0, "{name}: the cache was large enough for all");
        for (index, output) in outputs.iter().enumerate() {
            let mut tokens = prompt(index);
            let first = tokens.len();
            tokens.extend(&output.tokens);
            let logits = engine.logits(&tokens, &CancellationToken::new()).unwrap();
            for (position, &token) in output.tokens.iter().enumerate() {
                let row = &logits[first + position - 1];
                let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                // The order of sums differs between the two ways: a tie may fall either way.
                let (range, behind) =
                    (row[best] - row.iter().copied().fold(f32::MAX, f32::min), row[best] - row[token as usize]);
                assert!(behind <= 4e-3 * range, "{name}, request {index}, token {position}: {token} instead of {best}");
            }
        }
    }
}

#[test]
fn random_choices_are_made_from_the_same_logits() {
    let mut engine = load("llama-gqa", &on_gpu(DtypeChoice::Bfloat16));
    let sampling = Sampling { temperature: 1.0, top_p: 0.9, top_k: None };
    let requests = || (0..4).map(|id| flashjob::engine::Request { sampling, ..request(id, &[1, 2, 3], 20) }).collect();
    let (first, _) = serve(&mut engine, requests()).unwrap();
    let (again, _) = serve(&mut engine, requests()).unwrap();
    let tokens = |outputs: &[flashjob::engine::Output]| outputs.iter().map(|o| o.tokens.clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&first), tokens(&again));
    assert_ne!(first[0].tokens, first[1].tokens);
}

#[test]
fn single_precision_is_refused_with_the_reason() {
    let config = on_gpu(DtypeChoice::Float32);
    let loaded =
        Engine::load_on(Placement::Gpus, &open("llama-gqa"), &config, &Events::default(), &CancellationToken::new());
    let Err(Error::Setting(reason)) = loaded else { panic!("it loaded") };
    assert!(reason.contains("16 bits") && reason.contains("dtype"), "{reason}");
}

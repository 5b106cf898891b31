//! Tensor parallelism on the CPU: what is computed does not depend on how many compute it.

use std::num::NonZeroUsize;

use flashjob_config::{DtypeChoice, EngineConfig};
use tokio_util::sync::CancellationToken;

use super::{config, load, request, serve};
use crate::model::golden::{MODELS, prompts, relative_error};

fn ranks(count: usize) -> EngineConfig {
    EngineConfig { tensor_parallel_size: NonZeroUsize::new(count), ..config() }
}

/// Two ranks and four: with fewer heads of keys and values than ranks, too.
#[test]
fn two_and_four_ranks_give_the_tokens_and_logits_of_one() {
    for name in MODELS {
        let prompts = prompts(name);
        for count in [2, 4] {
            let mut engine = load(name, &ranks(count));
            assert_eq!(engine.report().tensor_parallel_size, count);
            for prompt in &prompts {
                let computed = engine.logits(&prompt.tokens, &CancellationToken::new()).unwrap();
                for (position, reference) in &prompt.logits {
                    let error = relative_error(reference, &computed[*position]);
                    assert!(error < 1e-4, "{name} on {count} ranks: {error:e}");
                }
            }
            let requests = prompts.iter().zip(0..).map(|(prompt, id)| request(id, &prompt.tokens, 64)).collect();
            let (outputs, _) = serve(&mut engine, requests).unwrap();
            for (prompt, output) in prompts.iter().zip(&outputs) {
                assert_eq!(output.tokens, prompt.greedy, "{name} on {count} ranks");
            }
        }
    }
}

#[test]
fn preemption_and_chunks_change_nothing_on_two_ranks() {
    let requests = || (0..6).map(|id| request(id, &[3 + id; 40], 60)).collect();
    let expected = serve(&mut load("qwen2-bias-window", &config()), requests()).unwrap().0;
    let tight = load("qwen2-bias-window", &ranks(2));
    let block_bytes = tight.report().kv_cache_bytes / tight.report().kv_blocks as u64;
    let tight = EngineConfig {
        kv_cache_memory_bytes: Some(5 * block_bytes),
        max_num_batched_tokens: NonZeroUsize::new(7),
        ..ranks(2)
    };
    assert_eq!(serve(&mut load("qwen2-bias-window", &tight), requests()).unwrap().0, expected);
}

#[test]
fn ranks_share_memory_and_threads_fairly() {
    let one = load("llama-gqa", &config());
    let two = load("llama-gqa", &ranks(2));
    assert_eq!((one.report().threads, two.report().threads), (2, 2));
    // All is there once, but for the rows that fill up the last panel of each part: a few beside the 32 or more that are real.
    let (one_bytes, two_bytes) = (one.report().cost.weight_bytes, two.report().cost.weight_bytes);
    assert!((one_bytes..one_bytes * 3 / 2).contains(&two_bytes), "{one_bytes} bytes on one rank, {two_bytes} on two");
    assert_eq!(one.report().cost.kv_bytes_per_token, two.report().cost.kv_bytes_per_token);
    // Two heads of keys and values on four ranks: each is there twice.
    let four = load("llama-gqa", &EngineConfig { dtype: DtypeChoice::Float32, ..ranks(4) });
    assert_eq!(four.report().cost.kv_bytes_per_token, 2 * one.report().cost.kv_bytes_per_token);
}

#[test]
fn a_cancelled_run_on_several_ranks_ends() {
    let cancel = CancellationToken::new();
    cancel.cancel();
    let mut engine = load("llama-gqa", &ranks(2));
    let error = engine.logits(&[1, 2, 3], &cancel).unwrap_err();
    assert!(matches!(error, flashjob_engine::Error::Cancelled), "{error}");
    assert_eq!(engine.logits(&[1, 2, 3], &CancellationToken::new()).unwrap().len(), 3);
}

//! What cannot be served is refused with a sentence that says why, before anything is computed.

use std::num::NonZeroUsize;

use flashjob_config::EngineConfig;
use flashjob_engine::{Engine, Error, Request};
use flashjob_event::Events;
use tokio_util::sync::CancellationToken;

use super::{config, load, open, request, serve};

#[test]
fn a_request_that_can_never_be_served_is_refused_before_the_run() {
    // Cached are at most 3 blocks of 32 tokens; the model goes further.
    let block_bytes = {
        let facts = load("llama-gqa", &config()).report().clone();
        facts.kv_cache_bytes / facts.kv_blocks as u64
    };
    let small = EngineConfig { kv_cache_memory_bytes: Some(3 * block_bytes), ..config() };
    let mut engine = load("llama-gqa", &small);
    assert_eq!(engine.report().max_model_len, 96);
    let vocab_size = open("llama-gqa").config.vocab_size as u32;
    let good = request(0, &[1, 2, 3], 4);
    for (bad, expected) in [
        (request(1, &[], 4), "its prompt is empty"),
        (request(1, &[1], 0), "it asks for no tokens"),
        (request(1, &[1, vocab_size], 4), &*format!("token {vocab_size}, but the model's ids end below {vocab_size}")),
        (request(1, &[1; 90], 7), "90 prompt tokens and 7 new ones are more than max-model-len, which is 96"),
        (request(1, &[1; 90], usize::MAX), "are more than max-model-len, which is 96"),
    ] {
        let mut outputs = 0;
        let result =
            engine.run(vec![good.clone(), bad], &Events::default(), &CancellationToken::new(), &mut |_| outputs += 1);
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::Request(refused) if refused.request.0 == 1), "{error}");
        assert!(error.to_string().starts_with("request 1 cannot run: "), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(outputs, 0);
    }
    let longest: Request = request(0, &[1; 90], 6);
    assert_eq!(serve(&mut engine, vec![longest]).unwrap().0[0].tokens.len(), 6);
}

#[test]
fn a_setting_that_cannot_be_met_is_refused_before_weights_are_read() {
    let model = open("llama-gqa");
    let most = model.config.max_position;
    let number = NonZeroUsize::new;
    for (config, expected) in [
        (
            EngineConfig { tensor_parallel_size: number(3), ..config() },
            "tensor-parallel-size=3 does not suit this model: cannot give rank 2 of 3 its part of the model: 2 key and \
             value heads cannot be split evenly; choose a tensor-parallel-size that divides"
                .to_owned(),
        ),
        (
            EngineConfig { max_model_len: number(most + 1), ..config() },
            format!("max-model-len is {}, but the model was made for {most} positions", most + 1),
        ),
        (
            EngineConfig { kv_cache_memory_bytes: Some(100), ..config() },
            "a KV cache for one sequence of 32 tokens needs ".to_owned(),
        ),
        (
            EngineConfig { kv_cache_memory_bytes: Some(1 << 60), ..config() },
            "the KV cache of kv-cache-memory needs 1073741824.0 GiB, but only ".to_owned(),
        ),
        (
            EngineConfig { max_num_batched_tokens: number(1 << 40), ..config() },
            "the model with its activations and a KV cache for one sequence of 32 tokens needs ".to_owned(),
        ),
        (
            EngineConfig { memory_utilization: 1e-12, ..config() },
            "but nothing is left for it; choose a smaller model".to_owned(),
        ),
    ] {
        let result = Engine::load(&model, &config, &Events::default(), &CancellationToken::new());
        let error = result.err().expect("it was accepted").to_string();
        assert!(error.contains(&expected), "{error}");
    }
}

//! Options of requests while they are served: log-probabilities beside those of transformers, and answers that no neighbour changes.

use std::num::NonZeroUsize;
use std::sync::Arc;

use flashjob_config::{EngineConfig, Sampling, SamplingOptions};
use flashjob_engine::{Output, Request};
use flashjob_test_models::golden::prompts;

use super::{config, load, request, serve};

fn with(request: Request, options: SamplingOptions) -> Request {
    Request { options: Some(Arc::new(options)), ..request }
}

/// Computed from transformers' logits at the end of each prompt, in double precision.
#[test]
fn log_probabilities_are_those_of_transformers() {
    for name in ["llama-gqa", "qwen3-qk-norm", "gemma2-softcaps"] {
        let prompts = prompts(name);
        let asked = |(prompt, id): (&_, u32)| {
            let prompt: &flashjob_test_models::golden::Prompt = prompt;
            // A bias changes what is chosen and no log-probability.
            let logit_bias = if id % 2 == 1 { vec![(prompt.greedy[0], -100.0)] } else { Vec::new() };
            with(
                request(id, &prompt.tokens, 1),
                SamplingOptions { logprobs: Some(20), logit_bias, ..Default::default() },
            )
        };
        let requests = prompts.iter().zip(0..).map(asked).collect();
        let outputs = serve(&mut load(name, &config()), requests).unwrap().0;
        for ((prompt, output), id) in prompts.iter().zip(&outputs).zip(0..) {
            let (_, logits) = prompt.logits.last().unwrap();
            let whole = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
            let expected = |token: u32| f64::from(logits[token as usize]) - whole;
            let [of_token] = &output.logprobs[..] else { panic!("{output:?}") };
            assert_eq!(of_token.top.len(), 20);
            for &(token, logprob) in of_token.top.iter().chain([&(output.tokens[0], of_token.logprob)]) {
                let difference = (f64::from(logprob) - expected(token)).abs();
                assert!(difference < 2e-3, "{name}, token {token}: {logprob} and not {}", expected(token));
            }
            assert!(of_token.top.is_sorted_by(|(_, a), (_, b)| a >= b));
            let likeliest = of_token.top[0].0;
            assert_eq!((likeliest, likeliest == output.tokens[0]), (prompt.greedy[0], id % 2 == 0), "{name}");
        }
    }
}

/// Requests of all kinds, of which some have options, in batches of all sizes and with preemption, have the answers that they have alone.
#[test]
fn answers_with_options_depend_on_nothing_else_in_the_batch() {
    let hot = Sampling { temperature: 1.3, top_p: 0.95, top_k: NonZeroUsize::new(30) };
    let options = |id: u32| SamplingOptions {
        min_p: 0.01 * (id % 3) as f32,
        min_tokens: 5,
        presence_penalty: [0.0, 1.5][id as usize % 2],
        frequency_penalty: 0.3,
        repetition_penalty: [1.0, 1.2, 0.9][id as usize % 3],
        logit_bias: vec![(id, 3.0), (7, -4.0)],
        logprobs: Some(id as usize % 4),
        ..Default::default()
    };
    let make = |id: u32| {
        let prompt: Vec<u32> = (0..3 + 5 * id).map(|i| (i * 7 + id) % 60).collect();
        let made = Request { seed: 4, stop_tokens: vec![9, 11], ..request(id, &prompt, 40) };
        let made = if id.is_multiple_of(2) { Request { sampling: hot, ..made } } else { made };
        if id % 4 == 3 { made } else { with(made, options(id)) }
    };
    let requests: Vec<Request> = (0..10).map(make).collect();
    let mut alone = load("llama-gqa", &config());
    let expected: Vec<Output> =
        requests.iter().map(|request| serve(&mut alone, vec![request.clone()]).unwrap().0.remove(0)).collect();
    let bytes = 6 * alone.report().kv_cache_bytes / alone.report().kv_blocks as u64;
    for config in [
        config(),
        EngineConfig { max_num_seqs: NonZeroUsize::new(3), max_num_batched_tokens: NonZeroUsize::new(17), ..config() },
        EngineConfig { kv_cache_memory_bytes: Some(bytes), ..config() },
    ] {
        assert_eq!(serve(&mut load("llama-gqa", &config), requests.clone()).unwrap().0, expected);
    }
    for (request, output) in requests.iter().zip(&expected) {
        let wanted = request.options.as_ref().map_or(0, |_| output.tokens.len());
        assert_eq!(output.logprobs.len(), wanted);
        // Five that may not end it, and the one that does.
        assert!(wanted == 0 || wanted >= 6, "{output:?}");
    }
}

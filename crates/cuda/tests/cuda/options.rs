//! Options of requests on a stand-in GPU: the tokens and log-probabilities that the CPU has from the same logits, bit for bit.

use std::num::NonZeroUsize;
use std::sync::Arc;

use flashjob_config::{DtypeChoice, Sampling, SamplingOptions};
use flashjob_cpu::{LogitAdjustments, LogprobsRow, Pool, TokenLogprobs, choose_tokens, row_distributions};
use flashjob_engine::{Request, SamplingKey};
use flashjob_test_engine::{request, serve, watched_logits};

use super::engine::{load, on_gpus};

const STOP: u32 = 9;

fn options(id: u32) -> SamplingOptions {
    SamplingOptions {
        min_p: [0.0, 0.05][id as usize % 2],
        min_tokens: 4,
        presence_penalty: 0.7,
        frequency_penalty: [0.0, 0.4, -0.3][id as usize % 3],
        repetition_penalty: [1.0, 1.2, 0.8][id as usize % 3],
        logit_bias: vec![(id, 2.0), (STOP, 3.0), (20, -100.0)],
        logprobs: id.is_multiple_of(2).then_some(id as usize),
        ..Default::default()
    }
}

/// The logits of the next token behind `prompt` and `generated`, by the formulas and token by token.
fn changed(row: &[f32], options: &SamplingOptions, prompt: &[u32], generated: &[u32]) -> Vec<f32> {
    let change = |(token, &logit): (u32, &f32)| {
        let bias = options.logit_bias.iter().find(|(biased, _)| *biased == token);
        let logit = match token == STOP && generated.len() < options.min_tokens {
            true => logit + f32::NEG_INFINITY,
            false => bias.map_or(logit, |(_, bias)| logit + bias),
        };
        let count = generated.iter().filter(|&&other| other == token).count() as f32;
        let is_counted = count > 0.0 || prompt.contains(&token);
        let scaled = if logit > 0.0 { logit / options.repetition_penalty } else { logit * options.repetition_penalty };
        match (is_counted, count > 0.0) {
            (true, true) => scaled - options.frequency_penalty * count - options.presence_penalty,
            (true, false) => scaled,
            (false, _) => logit,
        }
    };
    (0..).zip(row).map(change).collect()
}

#[test]
fn tokens_and_log_probabilities_are_those_of_the_cpu_from_the_same_logits() {
    let hot = Sampling { temperature: 1.2, top_p: 0.9, top_k: NonZeroUsize::new(40) };
    let asked = |id: u32| {
        let prompt: Vec<u32> = (0..1 + 5 * id).map(|i| (i * 7 + id) % 60).collect();
        let made = Request { seed: 11, stop_tokens: vec![STOP], ..request(id, &prompt, 12 + id as usize) };
        let made = if id.is_multiple_of(3) { made } else { Request { sampling: hot, ..made } };
        // One request without options among them.
        if id == 4 { made } else { Request { options: Some(Arc::new(options(id))), ..made } }
    };
    for (name, ranks) in [("llama-gqa", 1), ("gemma2-softcaps", 2)] {
        let mut engine = load(name, &on_gpus(ranks, DtypeChoice::Bfloat16));
        let requests: Vec<Request> = (0..8).map(asked).collect();
        let logits = watched_logits(&mut engine, requests.clone());
        let (outputs, _) = serve(&mut engine, requests.clone()).unwrap();
        let pool = Pool::new(1);
        for (request, output) in requests.iter().zip(outputs) {
            let plain = SamplingOptions::default();
            let options = request.options.as_deref().unwrap_or(&plain);
            let mut logprobs = Vec::new();
            for (index, &token) in output.tokens.iter().enumerate() {
                let position = request.prompt.len() + index;
                let bits = &logits[&(request.id.0, position)];
                let row: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
                let (key, mut chosen) =
                    (SamplingKey { seed: request.seed, stream: request.stream, position: position as u32 }, [0]);
                let choice = key.choice(&request.sampling).with_min_p(options.min_p);
                let changed = changed(&row, options, &request.prompt, &output.tokens[..index]);
                choose_tokens(&pool, &changed, row.len(), &[choice], &mut chosen);
                assert_eq!(token, chosen[0], "{name}, request {}, position {position}", request.id.0);
                if let Some(count) = options.logprobs {
                    let wanted = [LogprobsRow { row: 0, count: count as u32 }];
                    let found = row_distributions(&pool, &row, row.len(), &wanted, &LogitAdjustments::default());
                    logprobs.push(found[0].of_token(token, &row, row.len()));
                }
            }
            let expected: &[TokenLogprobs] = &logprobs;
            assert_eq!(output.logprobs, expected, "{name}, request {}", request.id.0);
        }
    }
}

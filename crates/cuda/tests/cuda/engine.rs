//! The engine on a stand-in GPU: the numbers of every family, and the way from prefill to decode.

use std::num::NonZeroUsize;

use flashjob_config::{DtypeChoice, EngineConfig, Sampling};
use flashjob_cuda::Cuda;
use flashjob_engine::{Engine, Error};
use flashjob_event::{Events, Fact};
use flashjob_test_engine::{config, open, request, serve, watched_logits};
use flashjob_test_models::golden::{MODELS, directory, prompts, relative_error};
use tokio_util::sync::CancellationToken;

/// One rank, and steps that are small: the stand-in takes its time.
fn on_gpu(dtype: DtypeChoice) -> EngineConfig {
    let max_num_batched_tokens = NonZeroUsize::new(48);
    EngineConfig { dtype, max_num_batched_tokens, tensor_parallel_size: NonZeroUsize::new(1), ..config() }
}

fn load(name: &str, config: &EngineConfig) -> Engine {
    Engine::load_on(&Cuda, &open(name), config, &Events::default(), &CancellationToken::new()).unwrap()
}

/// The stand-in has four devices.
fn on_gpus(count: usize, dtype: DtypeChoice) -> EngineConfig {
    EngineConfig { tensor_parallel_size: NonZeroUsize::new(count), ..on_gpu(dtype) }
}

#[test]
fn logits_are_those_of_transformers_within_16_bits() {
    logits_on(1);
}

#[test]
fn so_they_are_on_two_ranks() {
    logits_on(2);
}

/// There are more of them than heads of keys and values in some.
#[test]
fn so_they_are_on_four_ranks() {
    logits_on(4);
}

fn logits_on(ranks: usize) {
    logits_in(ranks, DtypeChoice::Bfloat16, (-8f32).exp2());
    logits_in(ranks, DtypeChoice::Float16, (-11f32).exp2());
}

/// `unit` is that of the format's rounding, here of all activations but the residual stream.
fn logits_in(ranks: usize, dtype: DtypeChoice, unit: f32) {
    for name in MODELS {
        let mut engine = load(name, &on_gpus(ranks, dtype));
        assert_eq!((engine.report().device, engine.report().tensor_parallel_size), ("cuda", ranks));
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
        assert!((0.01..bound).contains(&units), "{name} in {dtype:?} on {ranks} ranks: an error of {units} units");
    }
}

/// Mixed lengths, more of them than the cache holds at a time: each token is the one that a prefill of all before it gives.
#[test]
fn decode_and_preemption_change_no_token() {
    for (name, prefix_caching, ranks) in [
        ("llama-gqa", false, 1),
        ("mistral-window", false, 1),
        ("gemma3-two-ropes", true, 1),
        ("qwen2-bias-window", false, 2),
    ] {
        let blocks = 9;
        let mut small = on_gpus(ranks, DtypeChoice::Float16);
        small.prefix_caching = prefix_caching;
        let facts = load(name, &small).report().clone();
        let block_bytes = facts.kv_cache_bytes / (facts.kv_blocks * ranks) as u64;
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

/// Sizes are filled up with rows of no meaning, and sequences come and go: what is replayed is what would have been launched.
#[test]
fn replayed_steps_give_the_very_logits_of_launched_ones() {
    for (name, ranks) in [("llama-gqa", 1), ("mistral-window", 1), ("gemma2-softcaps", 1), ("phi3-short", 2)] {
        let config = on_gpus(ranks, DtypeChoice::Bfloat16);
        let (mut replaying, mut launching) =
            (load(name, &config), load(name, &EngineConfig { enforce_eager: true, ..config }));
        assert_eq!((replaying.report().cuda_graphs, launching.report().cuda_graphs), (true, false));
        let requests =
            || (0..7).map(|id| request(id, &vec![3 + id; 1 + 9 * id as usize], 10 + 7 * id as usize)).collect();
        let expected = watched_logits(&mut launching, requests());
        // In a second run every size has been recorded.
        for run in 0..2 {
            let found = watched_logits(&mut replaying, requests());
            assert_eq!(found.len(), (0..7).map(|id| 10 + 7 * id).sum::<usize>());
            assert!(found == expected, "{name} on {ranks} ranks, run {run}: other logits");
        }
    }
}

/// With a window that is longer than anything, a decode step takes the path of prefill, a head of queries at a time; without
/// one, the heads that share keys are rows of one head, and from 257 tokens on keys are attended to in parts.
#[test]
fn the_grouped_way_to_decode_gives_what_the_plain_one_gives() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(directory("mistral-window")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut settings: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut with_window = |window: serde_json::Value| {
        settings["sliding_window"] = window;
        settings.to_string()
    };
    let (plain, grouped) = (with_window(100_000.into()), with_window(serde_json::Value::Null));
    let served = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let model = flashjob_model::Model::open(folder.path()).unwrap();
        let config = on_gpu(DtypeChoice::Float16);
        let mut engine =
            Engine::load_on(&Cuda, &model, &config, &Events::default(), &CancellationToken::new()).unwrap();
        let lengths = [1usize, 31, 32, 33, 70, 230];
        let prompt = |id: u32, length: usize| (0..length as u32).map(|i| (i * i + 7 * id) % 60).collect::<Vec<_>>();
        let requests = lengths.iter().zip(0..).map(|(&length, id)| request(id, &prompt(id, length), 40)).collect();
        watched_logits(&mut engine, requests)
    };
    let (plain, grouped) = (served(&plain), served(&grouped));
    assert_eq!(plain.len(), 240);
    for (place, expected) in &plain {
        let numbers = |bits: &[u32]| bits.iter().map(|&bits| f32::from_bits(bits)).collect::<Vec<_>>();
        let error = relative_error(&numbers(expected), &numbers(&grouped[place]));
        assert!(error <= 4.0 * (-11f32).exp2(), "{place:?}: {error}");
    }
}

#[test]
fn random_choices_are_made_from_the_same_logits() {
    let mut engine = load("llama-gqa", &on_gpu(DtypeChoice::Bfloat16));
    let sampling = Sampling { temperature: 1.0, top_p: 0.9, top_k: None };
    let requests = || (0..4).map(|id| flashjob_engine::Request { sampling, ..request(id, &[1, 2, 3], 20) }).collect();
    let (first, _) = serve(&mut engine, requests()).unwrap();
    let (again, _) = serve(&mut engine, requests()).unwrap();
    let tokens = |outputs: &[flashjob_engine::Output]| outputs.iter().map(|o| o.tokens.clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&first), tokens(&again));
    assert_ne!(first[0].tokens, first[1].tokens);
}

#[test]
fn single_precision_is_refused_with_the_reason() {
    let config = on_gpu(DtypeChoice::Float32);
    let loaded = Engine::load_on(&Cuda, &open("llama-gqa"), &config, &Events::default(), &CancellationToken::new());
    let Err(Error::Setting(reason)) = loaded else { panic!("it loaded") };
    assert!(reason.contains("16 bits") && reason.contains("dtype"), "{reason}");
}

//! The engine on a stand-in GPU: the numbers of every family, and the way from prefill to decode.

use std::num::NonZeroUsize;
use std::sync::Arc;

use flashjob_config::{DtypeChoice, EngineConfig, Sampling};
use flashjob_cpu::{Pool, choose_tokens};
use flashjob_cuda::Cuda;
use flashjob_engine::{
    ConstrainedText, Constraint, Dispatch, Engine, Engines, Error, Operation, Output, Request, SamplingKey, StepSize,
};
use flashjob_event::{Events, Fact};
use flashjob_test_engine::{config, open, request, serve, watched_logits};
use flashjob_test_models::golden::{MODELS, directory, prompts, relative_error};
use tokio_util::sync::CancellationToken;

/// One rank, and steps that are small: the stand-in takes its time.
fn on_gpu(dtype: DtypeChoice) -> EngineConfig {
    let max_num_batched_tokens = NonZeroUsize::new(48);
    EngineConfig { dtype, max_num_batched_tokens, tensor_parallel_size: NonZeroUsize::new(1), ..config() }
}

pub(super) fn load(name: &str, config: &EngineConfig) -> Engine {
    Engine::load_on(&Cuda, &open(name), config, &Events::default(), &CancellationToken::new()).unwrap()
}

/// The stand-in has four devices.
pub(super) fn on_gpus(count: usize, dtype: DtypeChoice) -> EngineConfig {
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

/// Engines beside each other, on one GPU each or on two: the stand-in computes a row as it would without others.
#[test]
fn several_engines_answer_as_one_does() {
    let requests = || (0..24).map(|id| request(id, &vec![3 + id; 1 + id as usize % 9], 6 + id as usize % 5)).collect();
    for (engines, ranks) in [(2, 1), (4, 1), (2, 2)] {
        let one = on_gpus(ranks, DtypeChoice::Bfloat16);
        let (expected, _) = serve(&mut load("llama-gqa", &one), requests()).unwrap();
        let config = EngineConfig { data_parallel_size: NonZeroUsize::new(engines), ..one };
        let cancel = CancellationToken::new();
        let mut several = Engines::load_on(&Cuda, &open("llama-gqa"), &config, &Events::default(), &cancel).unwrap();
        let report = several.report();
        assert_eq!((report.data_parallel_size, report.tensor_parallel_size), (engines, ranks));
        let mut outputs: Vec<Output> = Vec::new();
        let mut finished = |output| outputs.push(output);
        several.run(requests(), Dispatch::OnDemand, &Events::default(), &cancel, &mut finished).unwrap();
        outputs.sort_by_key(|output| output.id);
        assert_eq!(outputs, expected, "{engines} engines of {ranks} ranks");
    }
}

/// Allows only tokens whose remainder by 7 is that of their place.
#[derive(Debug)]
struct Remainders;

struct Text(usize);

impl Constraint for Remainders {
    fn begin(&self, _thread: usize) -> Result<Box<dyn ConstrainedText>, String> {
        Ok(Box::new(Text(0)))
    }
}

impl ConstrainedText for Text {
    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String> {
        mask.fill(0);
        let allowed = (0..mask.len() * 32).filter(|token| token % 7 == self.0 % 7);
        allowed.for_each(|token| mask[token / 32] |= 1 << (token % 32));
        Ok(())
    }

    fn accept(&mut self, _token: u32) -> Result<bool, String> {
        self.0 += 1;
        Ok(false)
    }
}

/// In replayed steps and launched ones, beside rows without a mask, which have the tokens that they have without others.
#[test]
fn tokens_are_those_that_a_mask_allows() {
    for enforce_eager in [false, true] {
        let mut engine = load("llama-gqa", &EngineConfig { enforce_eager, ..on_gpu(DtypeChoice::Bfloat16) });
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: None };
        let free = |id: u32| Request { sampling, ..request(id, &vec![3 + id; 1 + id as usize % 9], 12) };
        let (expected, _) = serve(&mut engine, (0..9).map(free).collect()).unwrap();
        let masked =
            |id: u32| Request { constraint: id.is_multiple_of(2).then(|| Arc::new(Remainders) as _), ..free(id) };
        let (outputs, _) = serve(&mut engine, (0..9).map(masked).collect()).unwrap();
        for (output, expected) in outputs.iter().zip(&expected) {
            match output.id.0 % 2 {
                0 => assert!(output.tokens.iter().enumerate().all(|(place, token)| *token as usize % 7 == place % 7)),
                _ => assert_eq!(output, expected),
            }
        }
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

/// With a window that hides nothing yet but is shorter than what a recorded step is good for, a decode step takes the path of
/// prefill, a head of queries at a time; without one, the heads that share keys are rows of one head, and from 257 tokens on keys
/// are attended to in parts.
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
    let (plain, grouped) = (with_window(310.into()), with_window(serde_json::Value::Null));
    let served = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let model = flashjob_model::Model::open(folder.path()).unwrap();
        let config = on_gpu(DtypeChoice::Float16);
        let mut engine =
            Engine::load_on(&Cuda, &model, &config, &Events::default(), &CancellationToken::new()).unwrap();
        let lengths = [1usize, 31, 32, 33, 70, 260];
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

/// Sequences that sample in their own ways share steps, which are recorded and replayed.
#[test]
fn each_token_is_the_one_that_the_cpu_chooses_from_the_same_logits() {
    let options = [(0.0, 0, 1.0), (1.0, 0, 0.9), (0.7, 5, 1.0), (1.5, 20, 0.8), (1.0, 0, 1.0)];
    let sampling = |id: u32| {
        let (temperature, top_k, top_p) = options[id as usize % options.len()];
        Sampling { temperature, top_k: NonZeroUsize::new(top_k), top_p }
    };
    let asked = |id: u32| {
        let prompt: Vec<u32> = (0..1 + 5 * id).map(|i| (i * 7 + id) % 60).collect();
        Request { sampling: sampling(id), seed: 11, ..request(id, &prompt, 12 + id as usize) }
    };
    for (name, ranks) in [("llama-gqa", 1), ("gemma2-softcaps", 2)] {
        let mut engine = load(name, &on_gpus(ranks, DtypeChoice::Bfloat16));
        let requests: Vec<Request> = (0..10).map(asked).collect();
        let logits = watched_logits(&mut engine, requests.clone());
        let (outputs, _) = serve(&mut engine, requests.clone()).unwrap();
        for (request, output) in requests.iter().zip(outputs) {
            assert_eq!(output.tokens.len(), request.max_tokens);
            for (&token, position) in output.tokens.iter().zip(request.prompt.len()..) {
                let bits = &logits[&(request.id.0, position)];
                let row: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
                let key = SamplingKey { seed: request.seed, stream: request.id.0, position: position as u32 };
                let mut chosen = [0];
                let choice = key.choice(&request.sampling);
                choose_tokens(&Pool::new(1), &row, row.len(), &[choice], &mut chosen);
                assert_eq!(token, chosen[0], "{name}, request {}, position {position}", request.id.0);
            }
        }
    }
}

#[test]
fn single_precision_is_refused_with_the_reason() {
    let config = on_gpu(DtypeChoice::Float32);
    let loaded = Engine::load_on(&Cuda, &open("llama-gqa"), &config, &Events::default(), &CancellationToken::new());
    let Err(Error::Setting(reason)) = loaded else { panic!("it loaded") };
    assert!(reason.contains("16 bits") && reason.contains("dtype"), "{reason}");
}

#[test]
fn operations_of_a_step_have_times_of_the_gpu_s_own() {
    let mut engine = load("llama-gqa", &on_gpu(DtypeChoice::Bfloat16));
    let greedy = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };
    let mut time = |sequences, new_tokens, context| {
        let size = StepSize { sequences, new_tokens, context };
        engine.time_step(size, greedy, &CancellationToken::new())
    };
    let decode = time(3, 1, 40).unwrap();
    // As a run has it: replayed as a whole, and launched one by one where operations are timed.
    assert!(decode.replayed && decode.seconds > 0.0);
    let calls: Vec<(Operation, usize)> = decode.operations.iter().map(|times| (times.operation, times.calls)).collect();
    let each_layer = [Operation::Qkv, Operation::RopeAndCache, Operation::Attention, Operation::O];
    let each_layer = each_layer.into_iter().chain([Operation::GateUp, Operation::Gate, Operation::Down]);
    let once = [Operation::Embedding, Operation::Head, Operation::Sampling];
    let mut expected: Vec<(Operation, usize)> = each_layer.map(|operation| (operation, 2)).collect();
    expected.extend(once.map(|operation| (operation, 1)));
    expected.push((Operation::Norm, 5));
    expected.sort();
    assert_eq!(calls, expected);
    assert!(decode.operations.iter().all(|times| times.seconds > 0.0), "{decode:?}");
    let prefill = time(2, 16, 0).unwrap();
    assert!(!prefill.replayed && prefill.operations.iter().any(|times| times.operation == Operation::GatherRows));
    let beyond = time(2, 40, 0).unwrap_err();
    assert!(matches!(beyond, Error::Setting(_)), "{beyond}");
    // The clock is stopped: what runs afterwards is recorded and replayed as ever.
    let (outputs, _) = serve(&mut engine, vec![request(0, &[3, 1, 4], 8)]).unwrap();
    assert_eq!(outputs[0].tokens.len(), 8);
}

//! With `deterministic=true` what is computed for a request does not depend on the others: on a stand-in GPU on which products depend on
//! their number of rows, and attention on its kind, as on a real one.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::process::{Command, Output};

use flashjob_config::{DtypeChoice, EngineConfig, Sampling};
use flashjob_cuda::Cuda;
use flashjob_engine::{Engine, Error, Request};
use flashjob_event::{Events, Fact};
use flashjob_test_engine::{config, open, request, serve, watched_logits};
use tokio_util::sync::CancellationToken;

fn on_gpu(deterministic: bool) -> EngineConfig {
    EngineConfig {
        dtype: DtypeChoice::Bfloat16,
        max_num_batched_tokens: NonZeroUsize::new(48),
        tensor_parallel_size: NonZeroUsize::new(1),
        deterministic,
        ..config()
    }
}

fn load(name: &str, config: &EngineConfig) -> Result<Engine, Error> {
    Engine::load_on(&Cuda, &open(name), config, &Events::default(), &CancellationToken::new())
}

/// Requests that differ in length, some of them longer than what is attended to in one piece elsewhere.
fn requests() -> Vec<Request> {
    let lengths = [5usize, 33, 31, 70, 300, 12, 64, 9];
    let make = |(id, length): (u32, usize)| {
        let prompt: Vec<u32> = (0..length as u32).map(|i| (i * i + 7 * id) % 60).collect();
        let sampling = Sampling { temperature: if id % 2 == 0 { 0.0 } else { 1.0 }, top_p: 0.9, top_k: None };
        // The first four are admitted together, and need 12 blocks in the end: in a cache of 11 one of them is preempted.
        let max_tokens = if id < 4 { 40 } else { 12 + id as usize };
        Request { sampling, seed: 3, ..request(id, &prompt, max_tokens) }
    };
    (0..).zip(lengths).map(make).collect()
}

type Logits = BTreeMap<(u32, usize), Vec<u32>>;

/// Logits and tokens of each request by itself.
fn alone(engine: &mut Engine) -> (Logits, Vec<Vec<u32>>) {
    let logits = requests().into_iter().flat_map(|request| watched_logits(engine, vec![request])).collect();
    let mut tokens = |request| serve(engine, vec![request]).unwrap().0.remove(0).tokens;
    (logits, requests().into_iter().map(&mut tokens).collect())
}

/// Runs a test of this file in a process with `variable`, which holds for all of it.
fn with(variable: &str, test: &str) -> Output {
    let test = format!("cuda::deterministic::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &test, "--ignored"]).env(variable, "1").output().unwrap()
}

fn expect_passed(ran: &Output) {
    let printed = [&ran.stdout[..], &ran.stderr[..]].map(String::from_utf8_lossy).concat();
    assert!(ran.status.success() && printed.contains("1 passed"), "{printed}");
}

#[test]
fn logits_and_tokens_of_a_request_are_those_that_it_has_alone() {
    expect_passed(&with("STAND_IN_ROWS_MATTER", "compared_where_rows_matter"));
}

#[test]
#[ignore = "its process has a setting of its own: another test starts it"]
fn compared_where_rows_matter() {
    let number = NonZeroUsize::new;
    for name in ["llama-gqa", "mistral-window", "gemma3-two-ropes", "qwen2-bias-window"] {
        let (expected, tokens) = alone(&mut load(name, &on_gpu(true)).unwrap());
        let blocks = |count: u64, config: EngineConfig| {
            let report = load(name, &config).unwrap().report().clone();
            let block_bytes = report.kv_cache_bytes / report.kv_blocks as u64;
            EngineConfig { kv_cache_memory_bytes: Some(count * block_bytes), ..config }
        };
        for (how, config) in [
            ("all at once", on_gpu(true)),
            ("three at a time", EngineConfig { max_num_seqs: number(3), ..on_gpu(true) }),
            ("in small chunks", EngineConfig { max_num_batched_tokens: number(16), ..on_gpu(true) }),
            ("in large steps", EngineConfig { max_num_batched_tokens: number(400), ..on_gpu(true) }),
            ("launched one by one", EngineConfig { enforce_eager: true, ..on_gpu(true) }),
            ("in a tight cache", blocks(11, on_gpu(true))),
            ("with prefixes found", EngineConfig { prefix_caching: true, ..on_gpu(true) }),
        ] {
            let mut engine = load(name, &config).unwrap();
            assert!(engine.report().deterministic);
            let found = watched_logits(&mut engine, requests());
            let differs = expected.iter().find(|(place, logits)| found[place] != **logits);
            assert!(differs.is_none(), "{name}, {how}: request and position {:?}", differs.map(|(place, _)| place));
            let (outputs, facts) = serve(&mut engine, requests()).unwrap();
            let found: Vec<Vec<u32>> = outputs.into_iter().map(|output| output.tokens).collect();
            assert_eq!(found, tokens, "{name}, {how}");
            let preempted = facts.iter().any(|fact| matches!(fact, Fact::RequestPreempted { .. }));
            assert_eq!(preempted, how == "in a tight cache", "{name}, {how}");
        }
        // Otherwise the others show: the stand-in does what this test is for.
        let mut engine = load(name, &on_gpu(false)).unwrap();
        assert!(!engine.report().deterministic);
        let (expected, _) = alone(&mut engine);
        assert!(watched_logits(&mut engine, requests()) != expected, "{name}: nothing was to be seen");
    }
}

#[test]
fn a_gpu_on_which_a_row_depends_on_its_place_is_refused() {
    expect_passed(&with("STAND_IN_PLACES_MATTER", "refused_where_places_matter"));
}

#[test]
#[ignore = "its process has a setting of its own: another test starts it"]
fn refused_where_places_matter() {
    let Err(refused) = load("llama-gqa", &on_gpu(true)) else { panic!("it loaded") };
    let causes = std::iter::successors(Some(&refused as &dyn std::error::Error), |error| error.source());
    let said = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    assert!(said.contains("deterministic=true cannot be had on this GPU: of 256 equal rows"), "{said}");
    load("llama-gqa", &on_gpu(false)).unwrap();
}

/// Of two ranks the sum is the same in either order.
#[test]
fn two_ranks_may_share_a_model_and_more_may_not() {
    let ranks = |count| EngineConfig { tensor_parallel_size: NonZeroUsize::new(count), ..on_gpu(true) };
    let (expected, _) = alone(&mut load("llama-gqa", &ranks(2)).unwrap());
    assert_eq!(watched_logits(&mut load("llama-gqa", &ranks(2)).unwrap(), requests()), expected);
    let Err(Error::Setting(refused)) = load("llama-gqa", &ranks(4)) else { panic!("it loaded") };
    assert!(refused.contains("deterministic=true cannot be had with tensor-parallel-size=4"), "{refused}");
}

//! Steps that are queued before the tokens of those before them are read: outputs are those of steps that wait for each other.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::sync::Arc;

use flashjob_config::{DtypeChoice, EngineConfig, Sampling};
use flashjob_cuda::Cuda;
use flashjob_engine::{Dispatch, Engine, Engines, Error, Output, Request};
use flashjob_event::{Event, Events, Fact, FinishReason, Observer};
use flashjob_test_engine::{config, open, request, serve};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio_util::sync::CancellationToken;

fn on_gpu() -> EngineConfig {
    EngineConfig {
        dtype: DtypeChoice::Bfloat16,
        max_num_batched_tokens: NonZeroUsize::new(48),
        tensor_parallel_size: NonZeroUsize::new(1),
        ..config()
    }
}

fn load(config: &EngineConfig) -> Engine {
    Engine::load_on(&Cuda, &open("llama-gqa"), config, &Events::default(), &CancellationToken::new()).unwrap()
}

/// Blocks of 32 tokens that the cache of an engine with `config` is to have.
fn with_blocks(blocks: u64, config: EngineConfig) -> EngineConfig {
    let report = load(&config).report().clone();
    let block_bytes = report.kv_cache_bytes / report.kv_blocks as u64;
    EngineConfig { kv_cache_memory_bytes: Some(blocks * block_bytes), ..config }
}

/// What is asked for in one request.
type Asked = (u32, usize, usize, bool, Vec<u32>);

fn asked() -> impl Strategy<Value = Vec<Asked>> {
    let stop_tokens = prop::collection::vec(0..300u32, 0..12);
    prop::collection::vec((0..4u32, 1..90usize, 1..40usize, any::<bool>(), stop_tokens), 1..14)
}

fn requests(asked: &[Asked]) -> Vec<Request> {
    let make = |(id, (text, length, max_tokens, greedy, stop_tokens)): (u32, &Asked)| {
        let prompt: Vec<u32> = (0..*length as u32).map(|i| (i * 7 + text * 13) % 90).collect();
        let sampling = Sampling { temperature: if *greedy { 0.0 } else { 1.2 }, top_p: 0.95, top_k: None };
        Request { stop_tokens: stop_tokens.clone(), sampling, seed: 5, ..request(id, &prompt, *max_tokens) }
    };
    (0..).zip(asked).map(make).collect()
}

/// Tokens stated for each request.
fn stated(facts: &[Fact], outputs: &[Output]) -> Vec<Vec<u32>> {
    let of = |output: &Output| {
        let own = facts.iter().filter_map(|fact| match fact {
            Fact::TokenGenerated { request, token } if *request == output.id => Some(*token),
            _ => None,
        });
        own.collect()
    };
    outputs.iter().map(of).collect()
}

/// Running, waiting and blocks in use after the last step, and steps that began and did not end.
fn left_over(facts: &[Fact]) -> ((usize, usize, usize), isize) {
    let mut open = 0;
    let mut levels = (0, 0, 0);
    for fact in facts {
        match fact {
            Fact::StepStarted { .. } => open += 1,
            Fact::StepFinished { running, waiting, kv_blocks_used, .. } => {
                open -= 1;
                levels = (*running, *waiting, *kv_blocks_used);
            }
            _ => {}
        }
    }
    (levels, open)
}

/// Stop tokens in the middle, ends by length, chunks of prompts, caches that are too small for all, shared prefixes.
#[test]
fn any_workload_has_the_tokens_of_steps_that_wait_for_each_other() {
    let tight = with_blocks(8, on_gpu());
    let seqs = |count| NonZeroUsize::new(count);
    for config in [
        on_gpu(),
        tight.clone(),
        EngineConfig { prefix_caching: true, ..tight },
        EngineConfig { max_num_seqs: seqs(3), enforce_eager: true, ..on_gpu() },
    ] {
        let [ahead, waiting] = [false, true].map(|at_once| {
            let mut engine = load(&config);
            assert!(engine.report().async_scheduling);
            engine.read_tokens_at_once(at_once);
            RefCell::new(engine)
        });
        let mut runner = TestRunner::new(Config { cases: 6, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(&asked(), |asked| {
            let (expected, _) = serve(&mut waiting.borrow_mut(), requests(&asked)).unwrap();
            let (found, facts) = serve(&mut ahead.borrow_mut(), requests(&asked)).unwrap();
            prop_assert_eq!(&found, &expected);
            let tokens: Vec<Vec<u32>> = found.iter().map(|output| output.tokens.clone()).collect();
            prop_assert_eq!(stated(&facts, &found), tokens, "each token is stated once");
            prop_assert_eq!(left_over(&facts), ((0, 0, 0), 0));
            Ok(())
        });
        outcome.unwrap();
    }
}

/// Requests end by stop tokens and by length, both in the middle of others.
#[test]
fn engines_beside_each_other_run_ahead_too() {
    let plain: Vec<Request> = (0..20).map(|id| request(id, &[3 + id; 7], 12 + id as usize % 5)).collect();
    let mut one = load(&on_gpu());
    one.read_tokens_at_once(true);
    let (outputs, _) = serve(&mut one, plain.clone()).unwrap();
    let stopping = |(mut request, output): (Request, &Output)| {
        if request.id.0.is_multiple_of(2) {
            request.stop_tokens = vec![output.tokens[output.tokens.len() / 2]];
        }
        request
    };
    let requests: Vec<Request> = plain.into_iter().zip(&outputs).map(stopping).collect();
    let (expected, _) = serve(&mut one, requests.clone()).unwrap();
    for reason in [FinishReason::Stop, FinishReason::Length] {
        assert!(expected.iter().any(|output| output.reason == reason));
    }
    let config = EngineConfig { data_parallel_size: NonZeroUsize::new(2), ..on_gpu() };
    let cancel = CancellationToken::new();
    let mut two = Engines::load_on(&Cuda, &open("llama-gqa"), &config, &Events::default(), &cancel).unwrap();
    let mut outputs: Vec<Output> = Vec::new();
    let mut finished = |output| outputs.push(output);
    two.run(requests, Dispatch::OnDemand, &Events::default(), &cancel, &mut finished).unwrap();
    outputs.sort_by_key(|output| output.id);
    assert_eq!(outputs, expected);
}

/// Of several ranks only the first one knows the tokens.
#[test]
fn ranks_that_share_a_model_wait_for_tokens_and_say_so() {
    let two = EngineConfig { tensor_parallel_size: NonZeroUsize::new(2), ..on_gpu() };
    assert!(!load(&two).report().async_scheduling);
}

/// Steps under way, and the most that there were.
#[derive(Default)]
struct UnderWay(parking_lot::Mutex<(usize, usize)>);

impl Observer for UnderWay {
    fn observe(&self, event: &Event) {
        let (now, most) = &mut *self.0.lock();
        match event.fact {
            Fact::StepStarted { .. } => *now += 1,
            Fact::StepFinished { .. } => *now -= 1,
            _ => {}
        }
        *most = (*most).max(*now);
    }
}

#[test]
fn a_step_begins_before_the_one_before_it_has_ended_and_no_other_one_does() {
    for (at_once, expected) in [(false, 2), (true, 1)] {
        let mut engine = load(&on_gpu());
        engine.read_tokens_at_once(at_once);
        let seen = Arc::new(UnderWay::default());
        let events = Events::to(vec![seen.clone()]);
        let requests = (0..3).map(|id| request(id, &[5; 4], 9)).collect();
        engine.run(requests, &events, &CancellationToken::new(), &mut |_| {}).unwrap();
        assert_eq!(*seen.0.lock(), (0, expected));
    }
}

/// What was queued for a run that was cancelled is not taken for what the next one asks.
#[test]
fn a_run_after_a_cancelled_one_has_its_own_tokens() {
    /// Cancels once so many tokens are there.
    struct Canceller(CancellationToken, parking_lot::Mutex<usize>);
    impl Observer for Canceller {
        fn observe(&self, event: &Event) {
            if matches!(event.fact, Fact::TokenGenerated { .. }) {
                let mut left = self.1.lock();
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.0.cancel();
                }
            }
        }
    }
    let mut engine = load(&on_gpu());
    let wanted = || (0..4).map(|id| request(id, &[9 + id; 6], 10)).collect::<Vec<Request>>();
    let (expected, _) = serve(&mut engine, wanted()).unwrap();
    for tokens in 1..12 {
        let cancel = CancellationToken::new();
        let events = Events::to(vec![Arc::new(Canceller(cancel.clone(), parking_lot::Mutex::new(tokens)))]);
        let others = (0..5).map(|id| request(id, &[30 + id; 3], 20)).collect();
        let ended = engine.run(others, &events, &cancel, &mut |_| {});
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
        assert_eq!(serve(&mut engine, wanted()).unwrap().0, expected, "after {tokens} tokens");
    }
}

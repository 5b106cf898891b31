//! Several engines that share requests answer as one does, and share the work, the levels and the end of a run.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use flashjob_config::{EngineConfig, Schedule};
use flashjob_engine::{CandleReport, Cpu, Dispatch, Engines, Error, Output, Request};
use flashjob_event::{Event, Events, Fact, Observer};
use parking_lot::{Condvar, Mutex};
use tokio_util::sync::CancellationToken;

use super::invariance::RANDOM;
use super::{Facts, config, load, open, request, serve};

fn engines_with(count: usize, config: EngineConfig) -> Engines {
    let config = EngineConfig { data_parallel_size: NonZeroUsize::new(count), ..config };
    Engines::load_on(&Cpu, &open("llama-gqa"), &config, &Events::default(), &CancellationToken::new()).unwrap()
}

fn engines(count: usize) -> Engines {
    engines_with(count, EngineConfig { max_num_seqs: NonZeroUsize::new(4), ..config() })
}

fn run(
    engines: &mut Engines,
    requests: Vec<Request>,
    dispatch: Dispatch,
    observers: Vec<Arc<dyn Observer>>,
) -> Result<Vec<Output>, Error> {
    let mut outputs = Vec::new();
    engines.run(requests, dispatch, &Events::to(observers), &CancellationToken::new(), &mut |output| {
        outputs.push(output);
    })?;
    outputs.sort_by_key(|output| output.id);
    Ok(outputs)
}

/// Of different lengths, greedy and random ones.
fn mixed(count: u32) -> Vec<Request> {
    let make = |id: u32| {
        let prompt: Vec<u32> = (0..5 + id % 40).map(|token| (token * 7 + id) % 90).collect();
        let made = request(id, &prompt, 3 + id as usize % 11);
        if id.is_multiple_of(3) { Request { sampling: RANDOM, seed: 5, ..made } } else { made }
    };
    (0..count).map(make).collect()
}

/// Lets two engines of equal work step side by side, whichever of them the machine favours.
struct SideBySide {
    /// Steps of each engine so far.
    steps: Mutex<[usize; 2]>,
    stepped: Condvar,
}

impl SideBySide {
    fn new() -> Self {
        Self { steps: Mutex::default(), stepped: Condvar::new() }
    }
}

impl Observer for SideBySide {
    fn observe(&self, event: &Event) {
        let Fact::StepNeeded { engine, .. } = event.fact else { return };
        let mut steps = self.steps.lock();
        steps[engine] += 1;
        self.stepped.notify_all();
        while steps[1 - engine] < steps[engine] {
            assert!(!self.stepped.wait_for(&mut steps, Duration::from_secs(60)).timed_out(), "{steps:?}");
        }
    }
}

#[test]
fn tokens_are_those_of_one_engine_and_each_request_is_answered_once() {
    for (count, prefix_caching) in [(2, false), (3, false), (2, true)] {
        let config = EngineConfig { max_num_seqs: NonZeroUsize::new(4), prefix_caching, ..config() };
        let (expected, _) = serve(&mut load("llama-gqa", &config), mixed(60)).unwrap();
        let mut engines = engines_with(count, config);
        // The second time in caches that the first one has used.
        for dispatch in [Dispatch::OnDemand, Dispatch::RoundRobin] {
            let facts = Arc::new(Facts::default());
            assert_eq!(
                run(&mut engines, mixed(60), dispatch, vec![facts.clone()]).unwrap(),
                expected,
                "{count} engines"
            );
            let facts = facts.0.lock();
            let queued = facts.iter().take_while(|fact| matches!(fact, Fact::RequestQueued { .. })).count();
            assert_eq!(queued, 60, "all are queued before the first is computed");
            let mut tokens = BTreeMap::<u32, Vec<u32>>::new();
            for fact in facts.iter() {
                if let Fact::TokenGenerated { request, token } = fact {
                    tokens.entry(request.0).or_default().push(*token);
                }
            }
            assert!(expected.iter().all(|output| tokens[&output.id.0] == output.tokens));
        }
    }
}

#[test]
fn engines_share_the_work_to_the_end() {
    const REQUESTS: u32 = 32;
    let equal = (0..REQUESTS).map(|id| request(id, &[3 + id; 6], 10)).collect();
    let (facts, side_by_side) = (Arc::new(Facts::default()), Arc::new(SideBySide::new()));
    run(&mut engines(2), equal, Dispatch::OnDemand, vec![facts.clone(), side_by_side]).unwrap();
    let facts = facts.0.lock();
    let mut steps = Vec::new();
    let mut work = [(0, 0); 2];
    for fact in facts.iter() {
        if let Fact::StepFinished { engine, prefill_tokens, decode_tokens, running, waiting, .. } = fact {
            steps.push((*engine, running + waiting));
            work[*engine].0 += prefill_tokens;
            work[*engine].1 += decode_tokens;
            assert!(*running <= 8, "four places each");
        }
    }
    // The first of ten tokens comes with the prompt.
    assert_eq!(work, [(16 * 6, 16 * 9); 2]);
    // Levels are those of both: what one has finished is gone, what the other holds is counted.
    assert!(steps.iter().map(|(_, unfinished)| unfinished).rev().is_sorted(), "{steps:?}");
    let last: BTreeMap<usize, usize> = steps.iter().enumerate().map(|(place, (engine, _))| (*engine, place)).collect();
    assert!(last.values().all(|&place| place + 2 >= steps.len()), "both compute to the end: {steps:?}");
    assert_eq!(steps.last().map(|step| step.1), Some(0));
}

#[test]
fn a_short_queue_is_not_taken_by_the_first_engine_that_comes() {
    // One engine has places for all of them.
    let eight = (0..8).map(|id| request(id, &[3 + id; 6], 10)).collect();
    let (facts, side_by_side) = (Arc::new(Facts::default()), Arc::new(SideBySide::new()));
    let mut engines = engines_with(2, EngineConfig { max_num_seqs: NonZeroUsize::new(8), ..config() });
    run(&mut engines, eight, Dispatch::OnDemand, vec![facts.clone(), side_by_side]).unwrap();
    let facts = facts.0.lock();
    let most = facts.iter().filter_map(|fact| match fact {
        Fact::StepFinished { decode_tokens, .. } => Some(*decode_tokens),
        _ => None,
    });
    assert_eq!(most.max(), Some(4));
}

#[test]
fn the_report_adds_up_what_engines_have_each() {
    let (one, two) = (engines(1), engines(2));
    let CandleReport { data_parallel_size, tensor_parallel_size, threads, kv_blocks, kv_cache_bytes, .. } =
        *two.report();
    let alone = one.report();
    assert_eq!((data_parallel_size, tensor_parallel_size, alone.data_parallel_size), (2, 1, 1));
    // Two threads in all; each has a cache for four of the longest sequences.
    assert_eq!((threads, alone.threads), (2, 2));
    assert_eq!((kv_blocks, kv_cache_bytes), (2 * alone.kv_blocks, 2 * alone.kv_cache_bytes));
    // A cache of a size that was asked for is divided.
    let asked = |count| {
        let block_bytes = alone.kv_cache_bytes / alone.kv_blocks as u64;
        let kv_cache_memory_bytes = Some(20 * block_bytes);
        engines_with(count, EngineConfig { kv_cache_memory_bytes, ..config() }).report().clone()
    };
    assert_eq!((asked(1).kv_blocks, asked(1).max_model_len), (20, 512));
    assert_eq!((asked(2).kv_blocks, asked(2).max_model_len), (20, 320));
}

#[test]
fn other_limits_of_scheduling_are_those_of_all_engines() {
    let mut engines = engines(2);
    engines.reschedule(Some(1), None, true, Schedule::Input).unwrap();
    assert_eq!((engines.report().max_num_seqs, engines.report().prefix_caching), (1, true));
    assert_eq!(engines.report().data_parallel_size, 2);
    let equal = (0..12).map(|id| request(id, &[3 + id; 6], 10)).collect();
    let (facts, side_by_side) = (Arc::new(Facts::default()), Arc::new(SideBySide::new()));
    run(&mut engines, equal, Dispatch::OnDemand, vec![facts.clone(), side_by_side]).unwrap();
    let facts = facts.0.lock();
    let searched = facts.iter().filter(|fact| matches!(fact, Fact::PrefixSearched { .. })).count();
    let most = facts.iter().filter_map(|fact| match fact {
        Fact::StepFinished { running, .. } => Some(*running),
        _ => None,
    });
    assert_eq!((searched, most.max()), (12, Some(2)));
    assert!(engines.reschedule(Some(5), None, false, Schedule::Input).is_err());
    assert_eq!(engines.report().max_num_seqs, 1);
}

#[test]
fn a_request_that_can_never_be_served_is_refused_before_any_engine_computes() {
    let facts = Arc::new(Facts::default());
    let requests = vec![request(0, &[1], 2), request(1, &[], 2)];
    let error = run(&mut engines(2), requests, Dispatch::OnDemand, vec![facts.clone()]).unwrap_err();
    assert!(error.to_string().starts_with("request 1 cannot run: its prompt is empty"), "{error}");
    assert!(facts.0.lock().is_empty());
}

/// Does something once the second engine has made some steps.
struct Upset(Mutex<usize>, fn(&CancellationToken), CancellationToken);

impl Observer for Upset {
    fn observe(&self, event: &Event) {
        if matches!(event.fact, Fact::StepFinished { engine: 1, .. }) {
            let steps = {
                let mut steps = self.0.lock();
                *steps += 1;
                *steps
            };
            if steps == 3 {
                (self.1)(&self.2);
            }
        }
    }
}

/// More than would be over in a minute.
fn endless() -> Vec<Request> {
    (0..100_000).map(|id| request(id, &[1 + id % 50; 4], 100)).collect()
}

#[test]
fn a_cancelled_run_ends_all_engines_and_they_serve_again() {
    let mut engines = engines(2);
    let cancel = CancellationToken::new();
    let upset = Upset(Mutex::default(), CancellationToken::cancel, cancel.clone());
    let events = Events::to(vec![Arc::new(upset)]);
    let outcome = engines.run(endless(), Dispatch::OnDemand, &events, &cancel, &mut |_| {});
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    assert_eq!(run(&mut engines, mixed(9), Dispatch::OnDemand, Vec::new()).unwrap().len(), 9);
}

#[test]
fn a_panic_of_one_engine_stops_the_others() {
    let mut engines = engines(2);
    let upset = Upset(Mutex::default(), |_| panic!("the second engine is gone"), CancellationToken::new());
    let ran = catch_unwind(AssertUnwindSafe(|| {
        run(&mut engines, endless(), Dispatch::OnDemand, vec![Arc::new(upset)]).map(|outputs| outputs.len())
    }));
    let panic = ran.expect_err("it went on");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the second engine is gone"));
}

#[test]
fn an_end_that_the_caller_asks_for_while_outputs_arrive_ends_all_engines() {
    let mut engines = engines(2);
    let cancel = CancellationToken::new();
    let mut outputs = 0;
    let outcome = engines.run(endless(), Dispatch::OnDemand, &Events::default(), &cancel, &mut |_| {
        outputs += 1;
        if outputs == 5 {
            cancel.cancel();
        }
    });
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    assert!(outputs >= 5);
}

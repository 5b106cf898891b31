//! What is stated while requests are served, and how serving ends.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flashjob_config::EngineConfig;
use flashjob_engine::{Engine, Error, Request};
use flashjob_event::{Event, Events, Fact, FinishReason, Observer};
use tokio_util::sync::CancellationToken;

use super::{Facts, config, load, open, request, serve};

#[test]
fn every_token_and_every_step_is_stated_exactly_once() {
    let mut engine = load("llama-sharded", &EngineConfig { max_num_seqs: NonZeroUsize::new(3), ..config() });
    let requests: Vec<Request> = (0..8).map(|id| request(id, &vec![id + 1; 5 + id as usize], 10)).collect();
    let prompt_tokens: usize = requests.iter().map(|request| request.prompt.len()).sum();
    let (outputs, facts) = serve(&mut engine, requests).unwrap();
    assert_eq!(outputs.len(), 8);
    let mut tokens: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let (mut queued, mut scheduled) = (Vec::new(), Vec::new());
    let (mut prefilled, mut decoded, mut needs, mut steps) = (0, 0, 0, 0);
    let mut last_step = None;
    for fact in facts {
        match fact {
            Fact::RequestQueued { request, prompt_tokens } => {
                assert_eq!(prompt_tokens, 5 + request.0);
                queued.push(request.0);
            }
            Fact::RequestScheduled { request } => scheduled.push(request.0),
            Fact::TokenGenerated { request, token } => {
                assert!(scheduled.contains(&request.0), "a token of a request that never ran");
                tokens.entry(request.0).or_default().push(token);
            }
            Fact::StepNeeded { flops, bytes } => {
                needs += 1;
                assert!(flops > 0.0 && bytes > 0.0);
            }
            Fact::StepFinished { prefill_tokens, decode_tokens, running, waiting, kv_blocks_used, .. } => {
                steps += 1;
                prefilled += prefill_tokens;
                decoded += decode_tokens;
                assert!(running <= 3);
                last_step = Some((running, waiting, kv_blocks_used));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(queued, (0..8).collect::<Vec<_>>());
    assert_eq!(scheduled, (0..8).collect::<Vec<_>>());
    assert_eq!((prefilled, decoded), (prompt_tokens, 8 * 9), "the first token of each comes from its prefill");
    assert_eq!(last_step, Some((0, 0, 0)));
    assert_eq!(needs, steps);
    for output in outputs {
        assert_eq!(tokens[&output.id.0], output.tokens);
        assert_eq!((output.tokens.len(), output.reason), (10, FinishReason::Length));
    }
}

#[test]
fn a_stop_token_ends_a_request_and_is_its_last() {
    let mut engine = load("llama-gqa", &config());
    let free = serve(&mut engine, vec![request(0, &[3, 1, 4], 40)]).unwrap().0.remove(0);
    let stop = free.tokens[11];
    let first = free.tokens.iter().position(|&token| token == stop).unwrap();
    let stopped = Request { stop_tokens: vec![stop], ..request(0, &[3, 1, 4], 40) };
    let output = serve(&mut engine, vec![stopped]).unwrap().0.remove(0);
    assert_eq!(output.reason, FinishReason::Stop);
    assert_eq!(output.tokens, free.tokens[..=first]);
}

#[test]
fn nothing_to_do_is_done_at_once() {
    let (outputs, facts) = serve(&mut load("llama-gqa", &config()), Vec::new()).unwrap();
    assert!(outputs.is_empty() && facts.is_empty());
}

#[test]
fn loading_states_all_bytes_and_then_that_it_is_ready() {
    let facts = Arc::new(Facts::default());
    let model = open("llama-mqa-tied");
    let events = Events::to(vec![facts.clone()]);
    let engine = Engine::load(&model, &config(), &events, &CancellationToken::new()).unwrap();
    let facts = facts.0.lock();
    let mut read = 0;
    for fact in &facts[..facts.len() - 1] {
        let Fact::WeightsRead { bytes, total_bytes } = fact else { panic!("{fact:?}") };
        assert_eq!(*total_bytes, model.weights.total_bytes());
        read += bytes;
    }
    assert_eq!(read, model.weights.total_bytes());
    let Some(&Fact::EngineReady { kv_blocks, block_tokens }) = facts.last() else { panic!("{:?}", facts.last()) };
    assert_eq!((kv_blocks, block_tokens), (engine.report().kv_blocks, 32));
}

/// Cancels when it has seen as many facts of interest as it was told to wait for.
struct Canceller {
    cancel: CancellationToken,
    seen: AtomicUsize,
    after: usize,
    interest: fn(&Fact) -> bool,
}

impl Observer for Canceller {
    fn observe(&self, event: &Event) {
        if (self.interest)(&event.fact) && self.seen.fetch_add(1, Ordering::Relaxed) + 1 == self.after {
            self.cancel.cancel();
        }
    }
}

fn cancelling(after: usize, interest: fn(&Fact) -> bool) -> (Events, CancellationToken, Arc<Canceller>) {
    let cancel = CancellationToken::new();
    let canceller = Arc::new(Canceller { cancel: cancel.clone(), seen: AtomicUsize::new(0), after, interest });
    (Events::to(vec![canceller.clone()]), cancel, canceller)
}

#[test]
fn a_cancelled_run_stops_at_once_and_the_engine_serves_again() {
    let mut engine = load("llama-gqa", &config());
    let (events, cancel, canceller) = cancelling(5, |fact| matches!(fact, Fact::StepFinished { .. }));
    let mut outputs = 0;
    let requests = vec![request(0, &[1, 2], 40), request(1, &[3], 40)];
    let error = engine.run(requests, &events, &cancel, &mut |_| outputs += 1).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!((outputs, canceller.seen.load(Ordering::Relaxed)), (0, 5));

    let cancelled = engine.run(vec![request(0, &[1], 1)], &events, &cancel, &mut |_| outputs += 1);
    assert!(matches!(cancelled, Err(Error::Cancelled)));
    let (outputs, _) = serve(&mut engine, vec![request(0, &[1, 2], 4)]).unwrap();
    assert_eq!(outputs[0].tokens.len(), 4);
}

#[test]
fn cancelled_loading_stops_between_runs_of_rows() {
    let (events, cancel, canceller) = cancelling(3, |fact| matches!(fact, Fact::WeightsRead { .. }));
    let error = Engine::load(&open("llama-gqa"), &config(), &events, &cancel).err().expect("it loaded");
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(canceller.seen.load(Ordering::Relaxed), 3);
}

//! What is stated while requests are served, and how serving ends.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flashjob_config::EngineConfig;
use flashjob_engine::{Dispatch, Engine, Error, Output, Request, RequestQueue, Seat, StopTexts};
use flashjob_event::{Event, Events, Fact, FinishReason, Observer};
use flashjob_model::TokenBytes;
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
    let (mut prefilled, mut decoded, mut begun, mut needs, mut steps) = (0, 0, 0, 0, 0);
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
            Fact::StepStarted { .. } => begun += 1,
            Fact::StepNeeded { needs: step, .. } => {
                needs += 1;
                assert!(step.total().flops > 0.0 && step.total().bytes > 0.0);
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
    assert_eq!((begun, needs), (steps, steps));
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
fn a_stop_text_ends_a_request_with_the_token_in_which_it_is_complete() {
    let mut engine = load("llama-gqa", &config());
    // Each token is three letters, so that texts begin and end within tokens.
    let letters: Vec<[u8; 3]> =
        (0..288u32).map(|token| [b'a', b'a' + (token / 26) as u8, b'a' + (token % 26) as u8]).collect();
    let table = Arc::new(TokenBytes::new(letters.iter().map(|token| &token[..]), []));
    let prompts = || (0..6).map(|id| request(id, &[id + 3, 1, 4], 40));
    let free = serve(&mut engine, prompts().collect()).unwrap().0;
    let text = |tokens: &[u32]| tokens.iter().flat_map(|&token| letters[token as usize]).collect::<Vec<u8>>();
    // Over the end of a token, within one, one of several tokens, one of two, and one that does not come.
    let cuts = [29..32, 31..32, 40..52, 62..65, 119..120];
    let stops: Vec<String> = cuts
        .iter()
        .zip(&free)
        .map(|(cut, free)| String::from_utf8(text(&free.tokens)[cut.clone()].to_vec()).unwrap())
        .collect();
    for stop in stops.iter().map(String::as_str).chain(["no such text"]) {
        let texts = StopTexts::new(&[stop], table.clone(), false).unwrap();
        let stopping = |request| Request { stop_texts: Some(texts.clone()), ..request };
        let outputs = serve(&mut engine, prompts().map(stopping).collect()).unwrap().0;
        for (output, free) in outputs.iter().zip(&free) {
            let whole = text(&free.tokens);
            let end =
                whole.windows(stop.len()).position(|window| window == stop.as_bytes()).map(|start| start + stop.len());
            assert_eq!(output.tokens, free.tokens[..end.map_or(40, |end| end.div_ceil(3))], "{stop}");
            assert_eq!(output.reason, if end.is_some() { FinishReason::Stop } else { FinishReason::Length });
            assert_eq!(output.stop_texts.is_some(), end.is_some());
        }
    }
}

/// Outputs by request, and what was stated, of an engine that takes `requests` from a queue with room for `capacity` of them.
fn streamed(engine: &mut Engine, requests: &[Request], capacity: usize) -> (Vec<Output>, Vec<Fact>) {
    let one = NonZeroUsize::MIN;
    let queue = RequestQueue::new(one, Dispatch::OnDemand, NonZeroUsize::new(capacity).unwrap());
    let (facts, cancel) = (Arc::new(Facts::default()), CancellationToken::new());
    let events = Events::to(vec![facts.clone()]);
    let mut outputs = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            requests.iter().for_each(|request| assert!(queue.push(request.clone(), &events, &cancel)));
            queue.close();
        });
        let seat = Seat { queue: &queue, engine: 0 };
        engine.serve(seat, &events, &cancel, &mut |output| outputs.push(output)).unwrap();
    });
    outputs.sort_by_key(|output| output.id);
    let facts = std::mem::take(&mut *facts.0.lock());
    (outputs, facts)
}

#[test]
fn requests_that_arrive_while_others_run_have_the_same_tokens_and_few_wait() {
    let mut engine = load("llama-sharded", &EngineConfig { max_num_seqs: NonZeroUsize::new(3), ..config() });
    let requests: Vec<Request> = (0..40).map(|id| request(id, &[id % 50 + 1; 5], 3 + id as usize % 7)).collect();
    let (expected, _) = serve(&mut engine, requests.clone()).unwrap();
    let (outputs, facts) = streamed(&mut engine, &requests, 4);
    assert_eq!(outputs, expected);
    for fact in facts {
        if let Fact::StepFinished { running, waiting, .. } = fact {
            // As many as the queue holds, and one that the engine may hold besides.
            assert!(running <= 3 && waiting <= 5, "{running} {waiting}");
        }
    }
}

#[test]
fn a_request_that_is_refused_as_it_is_taken_ends_with_an_error_of_its_own() {
    let mut engine = load("llama-gqa", &config());
    let longest = engine.report().max_model_len;
    let good = |id| request(id, &[1, 2, 3], 4);
    let requests = [request(0, &[], 4), good(1), request(2, &[1], longest), good(3), request(4, &[1], 0)];
    let (outputs, _) = streamed(&mut engine, &requests, 8);
    let errors: Vec<String> = outputs.iter().filter_map(|output| Some(output.error.as_ref()?.to_string())).collect();
    assert_eq!(errors.len(), 3);
    assert_eq!(errors[0], "request 0 cannot run: its prompt is empty; give it at least one token");
    assert!(
        errors[1].starts_with(&format!("request 2 cannot run: 1 prompt tokens and {longest} new ones are more than"))
    );
    assert_eq!(errors[2], "request 4 cannot run: it asks for no tokens; ask for at least one");
    let alone = serve(&mut engine, vec![good(1), good(3)]).unwrap().0;
    let answered: Vec<Output> = outputs.into_iter().filter(|output| output.error.is_none()).collect();
    assert_eq!(answered, alone);
    // With nothing but such requests there is no step.
    let (outputs, facts) = streamed(&mut engine, &requests[..1], 8);
    assert_eq!(outputs.len(), 1);
    assert!(matches!(&facts[..], [Fact::RequestQueued { .. }]), "{facts:?}");
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
    let Some(&Fact::EngineReady { engines, kv_blocks, block_tokens }) = facts.last() else {
        panic!("{:?}", facts.last())
    };
    assert_eq!((engines, kv_blocks, block_tokens), (1, engine.report().kv_blocks, 32));
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

//! Requests with a constraint, beside others that have none.

use std::sync::Arc;

use flashjob_config::{EngineConfig, Sampling};
use flashjob_engine::{ConstrainedText, Constraint, Output, Request, RequestError};
use flashjob_event::FinishReason;

use super::invariance::preemptions;
use super::{config, load, request, serve};

/// Tokens that may be chosen at the `i`-th place are those whose remainder by 7 is that of `i`; after `length` of them a text is complete.
#[derive(Clone, Debug)]
struct Remainders {
    length: usize,
    fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Begin,
    BeginPanics,
    /// Fails at the mask with this number.
    Allow(usize),
    AllowPanics(usize),
    Accept(usize),
}

struct Text {
    constraint: Remainders,
    tokens: usize,
}

impl Constraint for Remainders {
    fn begin(&self, _thread: usize) -> Result<Box<dyn ConstrainedText>, String> {
        match self.fault {
            Some(Fault::Begin) => Err("it cannot begin".to_owned()),
            Some(Fault::BeginPanics) => panic!("a panic of a constraint"),
            _ => Ok(Box::new(Text { constraint: self.clone(), tokens: 0 })),
        }
    }
}

impl ConstrainedText for Text {
    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String> {
        match self.constraint.fault {
            Some(Fault::Allow(place)) if place == self.tokens => return Err("no token may come".to_owned()),
            Some(Fault::AllowPanics(place)) if place == self.tokens => panic!("a panic of a constraint"),
            _ => {}
        }
        mask.fill(0);
        (0..mask.len() * 32)
            .filter(|token| token % 7 == self.tokens % 7)
            .for_each(|token| mask[token / 32] |= 1 << (token % 32));
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        assert_eq!(token as usize % 7, self.tokens % 7, "the mask was not kept to");
        if self.constraint.fault == Some(Fault::Accept(self.tokens)) {
            return Err("it is not taken".to_owned());
        }
        self.tokens += 1;
        Ok(self.tokens == self.constraint.length)
    }
}

const HOT: Sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: None };

fn constrained(request: Request, length: usize, fault: Option<Fault>) -> Request {
    Request { constraint: Some(Arc::new(Remainders { length, fault })), sampling: HOT, ..request }
}

fn prompts() -> impl Iterator<Item = Request> {
    (0..8).map(|id| request(id, &vec![id + 1; 3 + 5 * id as usize], 20))
}

#[test]
fn tokens_are_those_that_a_mask_allows_and_a_complete_text_ends() {
    let mut engine = load("llama-gqa", &config());
    let free = serve(&mut engine, prompts().collect()).unwrap().0;
    let every_other = |request: Request| match request.id.0 % 2 {
        0 => constrained(request, 12, None),
        _ => request,
    };
    let outputs = serve(&mut engine, prompts().map(every_other).collect()).unwrap().0;
    for (output, free) in outputs.iter().zip(&free) {
        if output.id.0 % 2 == 0 {
            assert_eq!((output.tokens.len(), output.reason), (12, FinishReason::Stop));
            assert!(output.tokens.iter().enumerate().all(|(place, token)| *token as usize % 7 == place % 7));
        } else {
            assert_eq!(output, free, "others have the tokens that they have without it");
        }
    }
    // A text that is longer than the request may be, and one that is complete with its last token.
    let both = [constrained(request(0, &[1], 5), 9, None), constrained(request(1, &[1], 5), 5, None)];
    let reasons = serve(&mut engine, both.to_vec()).unwrap().0.into_iter().map(|output| output.reason);
    assert_eq!(reasons.collect::<Vec<_>>(), [FinishReason::Length, FinishReason::Stop]);
}

#[test]
fn preemption_changes_nothing() {
    // Of up to four blocks each: they grow while others wait for the same six.
    let long = |request: Request| constrained(Request { max_tokens: 90, ..request }, 80, None);
    let all = || prompts().map(long).collect::<Vec<_>>();
    let mut engine = load("llama-gqa", &config());
    let roomy = serve(&mut engine, all()).unwrap().0;
    let block_bytes = engine.report().kv_cache_bytes / engine.report().kv_blocks as u64;
    let tiny = EngineConfig { kv_cache_memory_bytes: Some(6 * block_bytes), ..config() };
    let (outputs, facts) = serve(&mut load("llama-gqa", &tiny), all()).unwrap();
    assert!(preemptions(&facts) > 0);
    assert_eq!(outputs, roomy);
}

#[test]
fn a_constraint_that_fails_ends_its_request_and_no_other() {
    let mut engine = load("llama-gqa", &config());
    let good = serve(&mut engine, prompts().map(|request| constrained(request, 12, None)).collect()).unwrap().0;
    for (fault, place, sentence) in [
        (Fault::Begin, 0, "it cannot begin"),
        (Fault::BeginPanics, 0, "computing its masks panicked"),
        (Fault::Allow(4), 4, "no token may come"),
        (Fault::AllowPanics(3), 3, "computing its masks panicked"),
        (Fault::Accept(2), 3, "it is not taken"),
    ] {
        let bad = |request: Request| {
            let fault = (request.id.0 % 3 == 1).then_some(fault);
            constrained(request, 12, fault)
        };
        let outputs: Vec<Output> = serve(&mut engine, prompts().map(bad).collect()).unwrap().0;
        assert_eq!(outputs.len(), good.len());
        for (output, good) in outputs.iter().zip(&good) {
            if output.id.0 % 3 != 1 {
                assert_eq!(output, good, "{fault:?}");
                continue;
            }
            let Some(RequestError::Unconstrained(error)) = &output.error else { panic!("{fault:?}: {output:?}") };
            assert_eq!((error.request, error.reason.as_str()), (output.id, sentence));
            assert_eq!((output.reason, &output.tokens[..]), (FinishReason::Error, &good.tokens[..place]), "{fault:?}");
        }
    }
}

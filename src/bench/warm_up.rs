//! The warm-up: requests before the measured region, so that no kernel, cache or compiled graph is met there for the first time.
//!
//! `warmup=N` runs N short requests, at least one on each engine. `warmup=auto` runs rounds of full batches that shrink to a single sequence, until each size of a
//! step has been seen on each engine and its duration has settled. Nothing of it is part of the region; its duration is reported.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use flashjob_config::WarmUp;

use super::step_times::{Round, size_class};
use super::{Error, Watch};
use crate::backend::{Backend, Request};
use crate::prepare;

/// Tokens after which a request ends: by then every kernel has run, on prompts and on single tokens.
const MAX_TOKENS: usize = 8;

/// Steps that a round spends at each size.
const STEPS_AT_A_SIZE: usize = 2;

/// Change of a step's duration between two rounds up to which it counts as settled.
const SETTLED: f64 = 0.05;

/// Rounds at most: on a machine that others use, durations never settle.
const MOST_ROUNDS: usize = 8;

/// Time after which no further round begins.
const LONGEST: Duration = Duration::from_secs(120);

/// Sequences of a full batch where the engine does not say how many it takes.
const USUAL_BATCH: usize = 256;

/// Where requests of a warm-up come from.
pub(super) trait WarmUpPrompts {
    /// Requests of the region, as far as they are at hand, and up to `most`.
    fn at_hand(&self, most: usize) -> usize;

    /// `count` requests that warm up, under numbers that no other request has.
    ///
    /// # Errors
    /// Prompts that cannot be made.
    fn warm_up(&self, count: usize) -> Result<Vec<Request>, Error>;

    /// A request that ends with an error spoils the run.
    fn exact(&self) -> bool;
}

impl WarmUpPrompts for prepare::Prompts {
    fn at_hand(&self, most: usize) -> usize {
        self.len().min(most)
    }

    fn warm_up(&self, count: usize) -> Result<Vec<Request>, Error> {
        self.warm_up(count).map_err(Error::Prompts)
    }

    fn exact(&self) -> bool {
        self.exact
    }
}

/// Course of an automatic warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WarmUpReport {
    /// Rounds of full batches.
    pub rounds: usize,
    /// Requests of all rounds.
    pub requests: usize,
    /// Steps of all rounds.
    pub steps: usize,
    /// Durations of steps had settled, and each size had been seen.
    pub is_stable: bool,
}

/// Warms up `backend` as `how` says; the report is that of an automatic warm-up.
///
/// # Errors
/// As a run, and prompts that cannot be made.
pub(super) fn warm_up(
    backend: &mut dyn Backend,
    prompts: &dyn WarmUpPrompts,
    how: WarmUp,
    watch: &Watch<'_>,
) -> Result<Option<WarmUpReport>, Error> {
    match how {
        WarmUp::Requests(count) => {
            // Each of several engines has kernels and graphs of its own.
            let count = count.next_multiple_of(backend.report().engine.engines());
            let mut requests = prompts.warm_up(count)?;
            for request in &mut requests {
                request.max_tokens = request.max_tokens.min(MAX_TOKENS);
            }
            if !requests.is_empty() {
                run(backend, requests, prompts.exact(), watch)?;
            }
            Ok(None)
        }
        WarmUp::Auto => automatic(backend, prompts, watch).map(Some),
    }
}

/// Runs requests whose completions are of no use.
fn run(backend: &mut dyn Backend, requests: Vec<Request>, exact: bool, watch: &Watch<'_>) -> Result<(), Error> {
    super::until_an_error(exact, watch.cancel, &mut |_completion| {}, |stop, finished| {
        backend.warm_up(requests, watch.events, stop, finished)
    })
}

fn automatic(backend: &mut dyn Backend, prompts: &dyn WarmUpPrompts, watch: &Watch<'_>) -> Result<WarmUpReport, Error> {
    let began = Instant::now();
    let engines = backend.report().engine.engines();
    let places = backend.report().engine.max_num_seqs().unwrap_or(USUAL_BATCH);
    let batch = places.min(prompts.at_hand(places * engines).div_ceil(engines)).max(1);
    let shrinking: Vec<Request> = prompts.warm_up(batch * engines)?;
    // Dealt out in turn, so that each engine has a batch that shrinks.
    let shrinking: Vec<Request> =
        shrinking.into_iter().enumerate().map(|(index, request)| shortened(request, index / engines, batch)).collect();
    let of_first: Vec<Request> = shrinking.iter().step_by(engines).cloned().collect();
    let (mut rounds, mut previous) = (Rounds::of(&of_first, engines), Round::default());
    let mut report = WarmUpReport { rounds: 0, requests: 0, steps: 0, is_stable: false };
    watch.step_times.take();
    while !report.is_stable && report.rounds < MOST_ROUNDS && began.elapsed() < LONGEST {
        run(backend, shrinking.clone(), prompts.exact(), watch)?;
        let round = watch.step_times.take();
        report.rounds += 1;
        report.requests += shrinking.len();
        report.steps += round.len();
        report.is_stable = rounds.is_settled(&previous, &round);
        previous = round;
    }
    Ok(report)
}

/// `request`, the one with number `index` of a batch, cut so that the batch passes through all sizes down to one.
fn shortened(request: Request, index: usize, batch: usize) -> Request {
    let sizes = sizes(batch).filter(|&size| index < size).count();
    // The first token comes with the prompt.
    Request { max_tokens: request.max_tokens.min(1 + STEPS_AT_A_SIZE * sizes), ..request }
}

/// Sizes that a batch passes through: itself, then the powers of two below it.
fn sizes(batch: usize) -> impl Iterator<Item = usize> {
    let powers = std::iter::successors(Some(size_class(batch) / 2), |size| Some(size / 2).filter(|&half| half > 0));
    std::iter::once(batch).chain(powers.filter(move |&size| size > 0 && size < batch))
}

/// Size classes that are to be seen on each engine, and those that were.
struct Rounds {
    engines: usize,
    wanted: BTreeSet<usize>,
    /// Engines, and classes that each has had.
    seen: BTreeSet<(usize, usize)>,
}

impl Rounds {
    /// The classes that `requests`, those of one engine, reach: none smaller where all of them are cut by their own length.
    fn of(requests: &[Request], engines: usize) -> Self {
        let most = requests.iter().map(|request| request.max_tokens).max().unwrap_or(0);
        // The second token is the first one that is decoded.
        let running = |token: usize| requests.iter().filter(|request| request.max_tokens >= token).count();
        let wanted = (2..=most).map(|token| size_class(running(token))).collect();
        Self { engines, wanted, seen: BTreeSet::new() }
    }

    /// Tells that all sizes were seen, and that `round` was no faster and no slower than the one before it.
    fn is_settled(&mut self, previous: &Round, round: &Round) -> bool {
        let (before, now) = (previous.decode_seconds(), round.decode_seconds());
        self.seen.extend(round.decode_sizes());
        // Prompts that fill up in several steps let the first sequences end earlier: the largest size may never be reached.
        let is_seen = |size: &usize| {
            (0..self.engines).all(|engine| self.seen.contains(&(engine, *size))) || Some(size) == self.wanted.last()
        };
        let largest = now.last_key_value();
        let is_stable = match largest {
            // No step only decodes: there is nothing to settle.
            None => previous.len() == round.len() && round.len() > 0,
            Some((size, seconds)) => {
                before.get(size).is_some_and(|earlier| (seconds - earlier).abs() <= SETTLED * earlier)
            }
        };
        is_stable && self.wanted.iter().all(is_seen)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flashjob_config::Sampling;
    use flashjob_event::{Events, Fact, Phase, RequestId};

    use super::super::StepTimes;
    use super::*;
    use crate::backend::Seed;

    fn batch(count: usize, max_tokens: usize) -> Vec<Request> {
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };
        let request = |id| Request {
            id: RequestId(id as u32),
            prompt: vec![1],
            max_tokens,
            ignore_eos: true,
            sampling,
            options: None,
            choice: 0,
            seed: Seed::Job(0),
            text: None,
        };
        (0..count).map(|index| shortened(request(index), index, count)).collect()
    }

    /// A round in which each of `steps`, sequences and milliseconds, only decodes.
    fn round(steps: &[(usize, u64)]) -> Round {
        round_on(0, steps)
    }

    fn round_on(engine: usize, steps: &[(usize, u64)]) -> Round {
        let times = Arc::new(StepTimes::default());
        let events = Events::to(vec![times.clone()]);
        events.emit(Fact::PhaseStarted(Phase::WarmUp));
        for &(decode_tokens, milliseconds) in steps {
            events.emit(Fact::StepFinished {
                engine,
                duration: Duration::from_millis(milliseconds),
                prefill_tokens: 0,
                decode_tokens,
                running: decode_tokens,
                waiting: 0,
                kv_blocks_used: 1,
            });
        }
        times.take()
    }

    #[test]
    fn a_batch_shrinks_through_all_sizes() {
        let requests = batch(12, 100);
        let running: Vec<usize> =
            (2..=11).map(|token| requests.iter().filter(|request| request.max_tokens >= token).count()).collect();
        assert_eq!(running, [12, 12, 8, 8, 4, 4, 2, 2, 1, 1]);
        assert_eq!(Rounds::of(&requests, 1).wanted, BTreeSet::from([1, 2, 4, 8, 16]));
        // Requests of two tokens decode once, all together.
        assert_eq!(Rounds::of(&batch(12, 2), 1).wanted, BTreeSet::from([16]));
        assert_eq!(Rounds::of(&batch(1, 100), 1).wanted, BTreeSet::from([1]));
    }

    #[test]
    fn it_is_stable_when_each_size_was_seen_and_two_rounds_agree() {
        let steps = [(4, 100), (4, 100), (2, 60), (1, 50)];
        let slower = [(4, 106), (4, 106), (2, 60), (1, 50)];
        for (previous, now, expected) in [
            (&[][..], &steps[..], false),
            (&steps, &steps, true),
            (&steps, &slower, false),
            (&slower, &slower, true),
            (&steps, &steps[..3], false),
        ] {
            let mut rounds = Rounds::of(&batch(4, 100), 1);
            let settled = rounds.is_settled(&round(previous), &round(now));
            assert_eq!(settled, expected, "{previous:?} {now:?}");
        }
    }

    #[test]
    fn each_engine_must_have_seen_each_size() {
        let steps = [(4, 100), (2, 60), (1, 50)];
        let mut rounds = Rounds::of(&batch(4, 100), 2);
        assert!(!rounds.is_settled(&round_on(0, &steps), &round_on(0, &steps)), "the second one has seen none");
        assert!(!rounds.is_settled(&round_on(0, &steps), &round_on(1, &steps[..2])), "it has not seen the smallest");
        assert!(rounds.is_settled(&round_on(0, &steps), &round_on(1, &steps)));
    }

    #[test]
    fn steps_outside_the_warm_up_are_not_kept() {
        let times = Arc::new(StepTimes::default());
        let events = Events::to(vec![times.clone()]);
        let step = Fact::StepFinished {
            engine: 0,
            duration: Duration::from_millis(1),
            prefill_tokens: 1,
            decode_tokens: 0,
            running: 1,
            waiting: 0,
            kv_blocks_used: 1,
        };
        events.emit(step.clone());
        events.emit(Fact::PhaseStarted(Phase::WarmUp));
        events.emit(step.clone());
        events.emit(Fact::PhaseStarted(Phase::Measure));
        events.emit(step);
        assert_eq!(times.take().len(), 1);
        assert_eq!(times.take().len(), 0);
    }
}

//! A batch as a measured region: its entries are taken as they become ready, and each answer is given away as it comes.
//!
//! Memory holds the counts of requests under way, and sums over those that have ended.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use flashjob_config::{Repeats, WarmUp};
use flashjob_event::{Fact, Phase, RequestId};

use super::expectation::Expectation;
use super::{Error, MeasuredRegion, Measurement, RunProgress, Watch, warm_up};
use crate::backend::{self, Backend, Completion, NextRequest, Request, RequestSource};
use crate::prepare::{Entry, EntryStream, NextEntry};

/// Time between two looks at a cancellation while an entry is waited for.
const PATIENCE: Duration = Duration::from_millis(20);

/// Warms up, and runs all `entries` as one region. What has been achieved stands in `progress`, also where this fails. A batch without a
/// request is no region.
///
/// # Errors
/// Errors of the backend, counts that are not exact, no request that was answered, and a fault in the dataset, once all requests before it
/// are answered.
pub fn answer(
    backend: &mut dyn Backend,
    entries: &EntryStream,
    seed: u64,
    how: WarmUp,
    watch: &Watch<'_>,
    progress: &RunProgress,
) -> Result<(), Error> {
    let underway = Underway::default();
    let mut source = EntrySource {
        entries,
        entered: watch.entered,
        cancel: watch.cancel,
        underway: &underway,
        waiting: VecDeque::new(),
    };
    // Taken before the region: a batch of refusals alone is none, and a warm-up has something to run.
    if let Some(first) = source.wait_for_first()? {
        watch.events.emit(Fact::PhaseStarted(Phase::WarmUp));
        let report = warm_up::warm_up(backend, &Beginning { first: &first, entries }, how, watch)?;
        progress.lock().warm_up = report;
        source.waiting.push_front(first);
        let measurement = region(backend, &mut source, watch, &underway)?;
        progress.lock().regions.push(MeasuredRegion { seed, measurement });
        progress.is_done(Repeats::ONCE);
    }
    entries.take_fault().map_or(Ok(()), |fault| Err(Error::Prompts(fault)))
}

/// Runs all of `source`, measured.
fn region(
    backend: &mut dyn Backend,
    source: &mut EntrySource<'_>,
    watch: &Watch<'_>,
    underway: &Underway,
) -> Result<Measurement, Error> {
    let stop = watch.cancel.child_token();
    let energy_before = (watch.energy_joules)();
    watch.events.emit(Fact::PhaseStarted(Phase::Measure));
    let outcome = backend.run(source, watch.events, &stop, &mut |completion| {
        // An answer whose counts are wrong may be wrong itself.
        match underway.end(&completion) {
            Ok(()) => (watch.completed)(&completion),
            Err(_) => stop.cancel(),
        }
    });
    let energy_after = (watch.energy_joules)();
    // Deviations go before the outcome: a run that was stopped for one ends as cancelled.
    let ended = std::mem::take(&mut *underway.0.lock());
    if let Some(deviation) = ended.deviation {
        return Err(Error::Counts(deviation));
    }
    outcome?;
    // A second look, as for a region that measures: other work may have held the machine up before it.
    backend.measure_limits_again(watch.events);
    let mut measurement = watch.recorder.measurement();
    measurement.energy_joules = energy_before.zip(energy_after).map(|(before, after)| after - before);
    measurement.requested_output_tokens = ended.requested_output_tokens;
    ended.verify(&measurement).map_err(Error::Counts)?;
    match ended.first_error {
        Some(first) if ended.failed == ended.completed => {
            Err(Error::NoAnswers { requests: ended.completed as usize, first })
        }
        _ => Ok(measurement),
    }
}

/// Entries as requests: what was refused is given away on the way.
struct EntrySource<'a> {
    entries: &'a EntryStream,
    entered: &'a (dyn Fn(Entry) + Sync),
    cancel: &'a CancellationToken,
    underway: &'a Underway,
    /// Requests that were taken: to see whether there is any, and for further answers to an entry.
    waiting: VecDeque<Request>,
}

impl EntrySource<'_> {
    /// The first request; `None` where there is none at all.
    fn wait_for_first(&mut self) -> Result<Option<Request>, Error> {
        loop {
            match self.taken(PATIENCE) {
                NextRequest::Request(request) => return Ok(Some(request)),
                NextRequest::End => return Ok(None),
                NextRequest::Later => {}
            }
            if self.cancel.is_cancelled() {
                return Err(Error::Backend(backend::Error::Cancelled));
            }
        }
    }

    fn taken(&mut self, patience: Duration) -> NextRequest {
        loop {
            if let Some(request) = self.waiting.pop_front() {
                return NextRequest::Request(request);
            }
            // A batch of refusals alone looks nowhere else.
            if self.cancel.is_cancelled() {
                return NextRequest::Later;
            }
            // Several for an entry that asks for several answers.
            let (entry, requests) = match self.entries.next(patience) {
                NextEntry::Entry(prepared) => prepared.expanded(),
                NextEntry::Later => return NextRequest::Later,
                NextEntry::End => return NextRequest::End,
            };
            // Before the backend has the request: its completion may come at once.
            (self.entered)(entry);
            self.waiting.extend(requests);
        }
    }
}

impl RequestSource for EntrySource<'_> {
    fn next(&mut self, patience: Duration) -> NextRequest {
        let next = self.taken(patience);
        if let NextRequest::Request(request) = &next {
            self.underway.begin(request);
        }
        next
    }

    // An engine that wants all of them at once would hold the whole batch.
    fn take_all(&mut self) -> Option<Vec<Request>> {
        None
    }
}

/// The requests with which a batch begins, which warm up, too.
struct Beginning<'a> {
    first: &'a Request,
    entries: &'a EntryStream,
}

impl warm_up::WarmUpPrompts for Beginning<'_> {
    fn at_hand(&self, most: usize) -> usize {
        1 + self.entries.ready(most.saturating_sub(1)).len()
    }

    fn warm_up(&self, count: usize) -> Result<Vec<Request>, Error> {
        let ready = self.entries.ready(count.saturating_sub(1));
        let beginning: Vec<&Request> = std::iter::once(self.first).chain(&ready).collect();
        // Under numbers that no entry has.
        let numbers = (0..count as u32).map(|index| RequestId(u32::MAX - index));
        let again = numbers.zip(beginning.iter().cycle());
        Ok(again.map(|(id, request)| Request { id, ..(*request).clone() }).collect())
    }

    fn exact(&self) -> bool {
        false
    }
}

/// Requests under way, and sums over all others.
#[derive(Default)]
struct Underway(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    expected: HashMap<RequestId, Expectation>,
    handed_over: u64,
    completed: u64,
    failed: u64,
    input_tokens: u64,
    output_tokens: u64,
    requested_output_tokens: u64,
    first_error: Option<String>,
    deviation: Option<String>,
}

impl Underway {
    fn begin(&self, request: &Request) {
        let mut counted = self.0.lock();
        counted.handed_over += 1;
        counted.requested_output_tokens += request.max_tokens as u64;
        counted.expected.insert(request.id, Expectation::of(request));
    }

    /// Counts in `completion`.
    ///
    /// # Errors
    /// It is none of a request under way, or has not the tokens that its end allows.
    fn end(&self, completion: &Completion) -> Result<(), ()> {
        let mut counted = self.0.lock();
        let checked = match counted.expected.remove(&completion.id) {
            None => Err(format!("request {} was answered twice, or never made", completion.id.0)),
            Some(expected) => {
                counted.input_tokens += expected.prompt_tokens as u64;
                expected.check(completion)
            }
        };
        counted.completed += 1;
        // Errors are answers: a line that cannot be answered does not end a batch.
        counted.failed += u64::from(completion.error.is_some());
        counted.output_tokens += completion.tokens.len() as u64;
        // The first one is named where no request was answered; the others are in the answers.
        if let (None, Some(error)) = (&counted.first_error, &completion.error) {
            counted.first_error = Some(error.to_string());
        }
        checked.map_err(|deviation| {
            counted.deviation.get_or_insert(deviation);
        })
    }
}

impl Counted {
    /// Checks that every request was answered once, and that events have counted what completions hold.
    fn verify(&self, measurement: &Measurement) -> Result<(), String> {
        let found = [measurement.totals.finished, self.completed];
        if found != [self.handed_over; 2] || !self.expected.is_empty() {
            return Err(format!(
                "{} requests were handed over, {} finished by the clock and {} by the backend",
                self.handed_over, found[0], found[1]
            ));
        }
        // Two ways to count, by facts and by completions, which share no code.
        let counted = (measurement.totals.input_tokens, measurement.totals.output_tokens);
        if counted != (self.input_tokens, self.output_tokens) {
            return Err(format!(
                "requests have {} prompt tokens and {} output tokens in all, but events counted {} and {}",
                self.input_tokens, self.output_tokens, counted.0, counted.1
            ));
        }
        Ok(())
    }
}

//! Data parallelism: engines that each hold the whole model, on devices of their own, and serve one queue of requests.
//!
//! Engines do not know of each other. Each has a thread for as long as it serves; what it takes from the queue and how full it is
//! decides which requests it gets. An engine that fails stops the others: what it held would never be answered.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::mpsc;

use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::error::Error;
use crate::report::CandleReport;
use crate::schedule::queue::{Dispatch, RequestQueue, Seat};
use crate::schedule::request::{Output, Request};
use flashjob_config::Schedule;
use flashjob_event::Events;

/// Outputs that wait for the calling thread at most.
const MOST_OUTPUTS: usize = 1024;

/// Engines that are loaded, one at least, and serve one run at a time.
pub struct Engines {
    first: Engine,
    others: Vec<Engine>,
    report: CandleReport,
}

impl Engines {
    /// These engines, which are alike.
    ///
    /// # Panics
    /// Where there are none.
    pub(crate) fn new(mut engines: Vec<Engine>) -> Self {
        let report = together(&engines);
        let first = engines.remove(0);
        Self { first, others: engines, report }
    }

    /// A single engine.
    pub fn of_one(engine: Engine) -> Self {
        Self { report: engine.report().clone(), first: engine, others: Vec::new() }
    }

    /// The first engine alone.
    pub(crate) fn into_first(self) -> Engine {
        self.first
    }

    /// Number of engines.
    pub fn count(&self) -> NonZeroUsize {
        NonZeroUsize::MIN.saturating_add(self.others.len())
    }

    /// Everything that was decided while loading, of all engines together.
    pub fn report(&self) -> &CandleReport {
        &self.report
    }

    /// As [`Engine::reschedule`], of each engine.
    ///
    /// # Errors
    /// As there; everything stays as it was.
    pub fn reschedule(
        &mut self,
        max_num_seqs: Option<usize>,
        max_num_batched_tokens: Option<usize>,
        prefix_caching: bool,
        schedule: Schedule,
    ) -> Result<(), Error> {
        // They are alike: what the first one refuses the others would refuse, too.
        self.first.reschedule(max_num_seqs, max_num_batched_tokens, prefix_caching, schedule)?;
        for engine in &mut self.others {
            engine.reschedule(max_num_seqs, max_num_batched_tokens, prefix_caching, schedule)?;
        }
        let CandleReport { max_num_seqs, max_num_batched_tokens, prefix_caching, .. } = *self.first.report();
        self.report =
            CandleReport { max_num_seqs, max_num_batched_tokens, prefix_caching, schedule, ..self.report.clone() };
        Ok(())
    }

    /// As [`Engine::measure_limits_again`], of the devices of all engines.
    pub fn measure_limits_again(&self, events: &Events) {
        self.first.measure_limits_again(events);
    }

    /// As [`Engine::run`], with requests given to engines as `dispatch` says. Tokens of a request are those that one engine gives it,
    /// with the same reservation: on a GPU they may depend on what else is in its batch.
    ///
    /// # Errors
    /// As there; where several engines fail, the error of the first one that was not stopped by others.
    pub fn run(
        &mut self,
        requests: Vec<Request>,
        dispatch: Dispatch,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut dyn FnMut(Output),
    ) -> Result<(), Error> {
        requests.iter().try_for_each(|request| request.check(&self.first.limits))?;
        let queue = self.queue(dispatch, NonZeroUsize::MAX).filled(requests, events);
        self.serve(&queue, events, cancel, finished)
    }

    /// An empty queue for these engines, in which at most `capacity` requests wait, in the order that was configured.
    pub fn queue(&self, dispatch: Dispatch, capacity: NonZeroUsize) -> RequestQueue {
        RequestQueue::new(self.count(), dispatch, capacity).in_order_of(self.report.schedule, self.report.block_size)
    }

    /// As [`Engine::serve`], by all engines, for which `queue` was made. Outputs are handed to `finished` on the calling thread.
    ///
    /// # Errors
    /// As [`Engines::run`].
    pub fn serve(
        &mut self,
        queue: &RequestQueue,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut dyn FnMut(Output),
    ) -> Result<(), Error> {
        if self.others.is_empty() {
            return self.first.serve(Seat { queue, engine: 0 }, events, cancel, finished);
        }
        let stop = cancel.child_token();
        let (outputs, received) = mpsc::sync_channel(MOST_OUTPUTS);
        std::thread::scope(|scope| {
            let engines = std::iter::once(&mut self.first).chain(&mut self.others).zip(0..);
            let serve = engines.map(|(engine, number)| {
                let (seat, stop, outputs) = (Seat { queue, engine: number }, &stop, outputs.clone());
                scope.spawn(move || {
                    let others = stop.clone().drop_guard();
                    // Received for as long as this thread runs, unless `finished` panics.
                    let served = engine.serve(seat, events, stop, &mut |output| drop(outputs.send(output)));
                    // An error or a panic stops the others.
                    if served.is_ok() {
                        others.disarm();
                    }
                    served
                })
            });
            let threads: Vec<_> = serve.collect();
            drop(outputs);
            // A panic here stops the engines; once they have ended there is nothing to stop.
            let _stopped = stop.clone().drop_guard();
            received.into_iter().for_each(finished);
            let outcomes = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            outcomes.fold(Ok(()), cause)
        })
    }
}

/// Of two outcomes the one that says why a run has ended: others are stopped because of the first that fails.
fn cause(one: Result<(), Error>, other: Result<(), Error>) -> Result<(), Error> {
    match (&one, &other) {
        (Ok(()), _) | (Err(Error::Cancelled), Err(_)) => other,
        (Err(_), _) => one,
    }
}

/// The report of `engines` as of one: caches and threads add up, all else is the same.
fn together(engines: &[Engine]) -> CandleReport {
    let reports = || engines.iter().map(Engine::report);
    CandleReport {
        threads: reports().map(|report| report.threads).sum(),
        kv_blocks: reports().map(|report| report.kv_blocks).sum(),
        kv_cache_bytes: reports().map(|report| report.kv_cache_bytes).sum(),
        ..engines[0].report().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_failed_is_the_cause_and_those_that_it_stopped_are_not() {
        let failed = || Err(Error::Setting("first".to_owned()));
        let stopped = || Err(Error::Cancelled);
        for (outcomes, expected) in [
            (vec![Ok(()), Ok(())], None),
            (vec![stopped(), failed(), stopped()], Some("first")),
            (vec![Ok(()), failed(), Err(Error::Setting("second".to_owned()))], Some("first")),
            (vec![stopped(), Ok(()), stopped()], Some("the engine was cancelled")),
            (vec![Ok(()), stopped()], Some("the engine was cancelled")),
        ] {
            let outcome = outcomes.into_iter().fold(Ok(()), cause);
            assert_eq!(outcome.err().map(|error| error.to_string()).as_deref(), expected);
        }
    }
}

//! Requests of a stream in a child process: a limited number of them at a time, whatever their number.
//!
//! An engine that takes requests while it runs is given another one for each that ends. One whose offline interface takes lists is given
//! one list after the other, and runs empty at the end of each.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use flashjob_event::{Events, Fact};

use super::protocol::{DriverCommand, DriverMessage, DriverRequest};
use super::run::{Run, Unfinished};
use super::{ChildEngine, out_of_turn};
use crate::backend::source::most_waiting;
use crate::backend::{Completion, Error, NextRequest, Request, RequestSource};

/// Requests of a list, as a multiple of those that the engine runs at once: its batch runs empty only so often.
const ROUNDS_IN_A_LIST: usize = 16;

/// Requests that are told together at most: more of them keep the driver from the engine's next step.
const MOST_TOGETHER: usize = 64;

/// Time between two looks at a cancellation while a request is waited for.
const PATIENCE: Duration = Duration::from_millis(20);

impl ChildEngine {
    /// Runs a stream of requests.
    pub(super) fn run_stream(
        &mut self,
        requests: &mut dyn RequestSource,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut (dyn FnMut(Completion) + Send),
    ) -> Result<(), Error> {
        if self.product.takes_requests_while_it_runs {
            return self.run_while_adding(requests, events, cancel, finished);
        }
        let most = ROUNDS_IN_A_LIST * most_waiting(&self.report);
        loop {
            let mut list = Vec::new();
            let is_last = take(requests, most, PATIENCE, &mut list);
            if !list.is_empty() {
                self.run_all(list, events, cancel, finished)?;
            }
            if is_last {
                return Ok(());
            }
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
        }
    }

    /// As many requests as the engine runs at once wait in it, besides those that it runs.
    fn run_while_adding(
        &mut self,
        requests: &mut dyn RequestSource,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut (dyn FnMut(Completion) + Send),
    ) -> Result<(), Error> {
        // Those that run and as many that wait, so that a place that becomes free is taken in the next step.
        let (most, name) = (2 * most_waiting(&self.report), self.product.name);
        let texts = self.texts.clone();
        let mut run = Run { engine: name, texts, unfinished: Default::default(), events, finished };
        self.child.tell(&DriverCommand::Stream);
        let mut is_over = false;
        loop {
            let room = most.saturating_sub(run.unfinished.len()).min(MOST_TOGETHER);
            if !is_over && room > 0 {
                // While the engine computes, its messages are waited for, and not the next request.
                let patience = if run.unfinished.is_empty() { PATIENCE } else { Duration::ZERO };
                let mut more = Vec::new();
                is_over = take(requests, room, patience, &mut more);
                self.add(&more, &mut run);
                // The engine ends the run by itself when it has answered what it has.
                if is_over {
                    self.child.tell(&DriverCommand::Close);
                } else if run.unfinished.is_empty() {
                    if cancel.is_cancelled() {
                        return Err(Error::Cancelled);
                    }
                    continue;
                }
            }
            match self.listen(cancel)? {
                // Each request of a stream begins when it is told, and not when the run does.
                DriverMessage::Running(_) => {}
                DriverMessage::Step(step) => run.step(step)?,
                DriverMessage::End(end) => run.end(end)?,
                DriverMessage::Done => return run.done(),
                other => return Err(Error::Inference(out_of_turn(name, &other).into())),
            }
        }
    }

    /// Gives `requests` to the engine.
    fn add(&self, requests: &[Request], run: &mut Run<'_>) {
        if requests.is_empty() {
            return;
        }
        for request in requests {
            // Queued as it is told to the engine: time in the window before it is no latency of the engine's.
            let prompt_tokens = request.prompt.len() as u32;
            run.events.emit(Fact::RequestQueued { request: request.id, prompt_tokens });
            run.unfinished.insert(request.id, Unfinished::new(request));
        }
        let eos_tokens = &self.texts.facts().eos_tokens;
        let asked = requests.iter().map(|request| DriverRequest::new(request, eos_tokens)).collect();
        self.child.tell(&DriverCommand::Take(asked));
    }
}

/// Moves up to `most` requests into `taken`, and tells whether there are no more. What is there is run: the engine would stand still
/// until more is ready.
fn take(requests: &mut dyn RequestSource, most: usize, patience: Duration, taken: &mut Vec<Request>) -> bool {
    while taken.len() < most {
        match requests.next(if taken.is_empty() { patience } else { Duration::ZERO }) {
            NextRequest::Request(request) => taken.push(request),
            NextRequest::Later => return false,
            NextRequest::End => return true,
        }
    }
    false
}

//! Requests that wait for an engine, outside of it: each engine takes the next one when it has room to run it.
//!
//! Whoever fills the queue may be ahead of the engines or behind them. Engines that share a queue share its requests evenly:
//! none holds more than its part of all that are unfinished, or the first one to come would take a short queue for itself. So
//! the queue knows how many sequences each engine holds. It knows nothing of tokens, blocks or time.

use std::iter::Sum;
use std::num::NonZeroUsize;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio_util::sync::CancellationToken;

use super::request::Request;
use super::request_order::WaitingRequests;
use flashjob_config::Schedule;
use flashjob_event::{Events, Fact};

/// Time between two looks at a cancellation, which wakes nobody who waits.
const PATIENCE: Duration = Duration::from_millis(20);

/// Choice of the engine that gets a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dispatch {
    /// The first one that has room for it.
    OnDemand,
    /// One engine after the other, in the order of requests: each gets requests of its own, whatever its pace.
    RoundRobin,
}

/// Sequences and blocks of one engine or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Requests and sequences that hold none.
    pub waiting: usize,
    /// Blocks of the KV cache in use.
    pub kv_blocks_used: usize,
}

impl Levels {
    fn unfinished(&self) -> usize {
        self.running + self.waiting
    }
}

impl Sum for Levels {
    fn sum<I: Iterator<Item = Self>>(levels: I) -> Self {
        levels.fold(Self::default(), |sum, level| Self {
            running: sum.running + level.running,
            waiting: sum.waiting + level.waiting,
            kv_blocks_used: sum.kv_blocks_used + level.kv_blocks_used,
        })
    }
}

/// An engine's place at a queue.
#[derive(Clone, Copy)]
pub struct Seat<'a> {
    /// Requests that wait for it and others.
    pub queue: &'a RequestQueue,
    /// Number of the engine among those that share it, from 0.
    pub engine: usize,
}

/// A queue of requests between those who make them and the engines that serve them.
pub struct RequestQueue {
    state: Mutex<State>,
    /// A request came or went, or the queue was closed.
    changed: Condvar,
    capacity: usize,
}

struct State {
    /// One line for all engines, or one for each.
    lines: Vec<WaitingRequests<Request>>,
    /// Requests pushed so far.
    pushed: usize,
    is_closed: bool,
    /// By engine, after its last step; requests that it has taken since are waiting ones.
    levels: Vec<Levels>,
}

impl State {
    fn queued(&self) -> usize {
        self.lines.iter().map(WaitingRequests::len).sum()
    }

    fn line(&mut self, engine: usize) -> &mut WaitingRequests<Request> {
        let line = engine % self.lines.len();
        &mut self.lines[line]
    }

    /// Tells that `engine` holds less than its part of all unfinished requests.
    fn is_due(&self, engine: usize) -> bool {
        let held: usize = self.levels.iter().map(Levels::unfinished).sum();
        self.lines.len() > 1 || self.levels[engine].unfinished() < (self.queued() + held).div_ceil(self.levels.len())
    }
}

impl RequestQueue {
    /// An empty queue for so many engines, in which at most `capacity` requests wait.
    pub fn new(engines: NonZeroUsize, dispatch: Dispatch, capacity: NonZeroUsize) -> Self {
        let lines = match dispatch {
            Dispatch::OnDemand => 1,
            Dispatch::RoundRobin => engines.get(),
        };
        let state = State {
            lines: (0..lines).map(|_| WaitingRequests::new(Schedule::Input, 1)).collect(),
            pushed: 0,
            is_closed: false,
            levels: vec![Levels::default(); engines.get()],
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), capacity: capacity.get() }
    }

    /// The same empty queue, whose requests are taken in the order of `schedule`; `block_size` is that of the engines' KV caches.
    pub fn in_order_of(self, schedule: Schedule, block_size: usize) -> Self {
        for line in &mut self.state.lock().lines {
            *line = WaitingRequests::new(schedule, block_size);
        }
        self
    }

    /// All of `requests` and no more, each stated in `events` as queued.
    pub fn holding(requests: Vec<Request>, engines: NonZeroUsize, dispatch: Dispatch, events: &Events) -> Self {
        Self::new(engines, dispatch, NonZeroUsize::MAX).filled(requests, events)
    }

    /// This queue with all of `requests`, which it has room for, and no more.
    pub fn filled(self, requests: Vec<Request>, events: &Events) -> Self {
        let cancel = CancellationToken::new();
        for request in requests {
            self.push(request, events, &cancel);
        }
        self.close();
        self
    }

    /// Queues `request`, and states it in `events`; waits while the queue is full. False: cancelled meanwhile, and not queued.
    pub fn push(&self, request: Request, events: &Events, cancel: &CancellationToken) -> bool {
        let mut state = self.state.lock();
        while state.queued() >= self.capacity {
            if cancel.is_cancelled() {
                return false;
            }
            self.changed.wait_for(&mut state, PATIENCE);
        }
        // Stated before an engine can take it.
        events.emit(Fact::RequestQueued { request: request.id, prompt_tokens: request.prompt.len() as u32 });
        let engine = state.pushed;
        state.pushed += 1;
        state.line(engine).push(request);
        self.changed.notify_all();
        true
    }

    /// No further request comes.
    pub fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// The next request for `engine`, which then holds it; `None` where there is none now, or none that it should take.
    pub fn take(&self, engine: usize) -> Option<Request> {
        let mut state = self.state.lock();
        if !state.is_due(engine) {
            return None;
        }
        let request = state.line(engine).pop(engine)?;
        state.levels[engine].waiting += 1;
        self.changed.notify_all();
        Some(request)
    }

    /// Requests that wait for `engine`, or for whichever takes them first.
    pub fn waiting_for(&self, engine: usize) -> usize {
        self.state.lock().line(engine).len()
    }

    /// Notes what `engine` holds after a step, and has `tell` state what all engines and the queue hold: one engine after the other, so that
    /// the last levels that are stated are those that stay.
    pub fn note(&self, engine: usize, levels: Levels, tell: impl FnOnce(Levels)) {
        let mut state = self.state.lock();
        state.levels[engine] = levels;
        let sum: Levels = state.levels.iter().copied().sum();
        tell(Levels { waiting: sum.waiting + state.queued(), ..sum });
    }

    /// Waits, on behalf of an engine that holds nothing, until there is a request for it or the run is cancelled. False: none will
    /// come.
    pub fn wait(&self, engine: usize, cancel: &CancellationToken) -> bool {
        let mut state = self.state.lock();
        while state.line(engine).is_empty() && !cancel.is_cancelled() {
            if state.is_closed {
                return false;
            }
            self.changed.wait_for(&mut state, PATIENCE);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();

    fn requests(count: u32) -> Vec<Request> {
        let request = |id| Request::greedy(id, vec![1], 1);
        (0..count).map(request).collect()
    }

    fn holding(count: u32, dispatch: Dispatch) -> RequestQueue {
        RequestQueue::holding(requests(count), TWO, dispatch, &Events::default())
    }

    fn taken(queue: &RequestQueue, engine: usize) -> Vec<u32> {
        std::iter::from_fn(|| queue.take(engine)).map(|request| request.id.0).collect()
    }

    /// The levels that are stated.
    fn noted(queue: &RequestQueue, engine: usize, levels: Levels) -> Levels {
        let mut told = None;
        queue.note(engine, levels, |levels| told = Some(levels));
        told.unwrap()
    }

    fn running(running: usize) -> Levels {
        Levels { running, waiting: 0, kv_blocks_used: running }
    }

    #[test]
    fn an_engine_leaves_the_others_their_part_of_a_short_queue() {
        let queue = holding(9, Dispatch::OnDemand);
        assert_eq!(taken(&queue, 0), [0, 1, 2, 3, 4]);
        assert_eq!(taken(&queue, 1), [5, 6, 7, 8]);
        // What an engine has finished it may take again, as long as it does not hold more than its part.
        let queue = holding(9, Dispatch::OnDemand);
        assert_eq!(taken(&queue, 0).len(), 5);
        noted(&queue, 0, running(1));
        assert_eq!(taken(&queue, 0), [5, 6]);
        assert_eq!(taken(&queue, 1), [7, 8]);
    }

    #[test]
    fn one_engine_after_the_other_gets_requests_whatever_its_pace() {
        let queue = holding(5, Dispatch::RoundRobin);
        assert_eq!(taken(&queue, 1), [1, 3]);
        assert_eq!(taken(&queue, 0), [0, 2, 4]);
    }

    #[test]
    fn levels_are_those_of_all_engines_and_of_the_queue() {
        let queue = holding(10, Dispatch::OnDemand);
        (0..3).for_each(|_| assert!(queue.take(0).is_some()));
        queue.take(1);
        // Six are queued, the other engine has taken one, and this one has begun with two of its three.
        let level = noted(&queue, 0, Levels { running: 2, waiting: 1, kv_blocks_used: 5 });
        assert_eq!(level, Levels { running: 2, waiting: 1 + 1 + 6, kv_blocks_used: 5 });
        assert_eq!(noted(&queue, 1, running(1)), Levels { running: 3, waiting: 1 + 6, kv_blocks_used: 6 });
    }

    #[test]
    fn who_fills_the_queue_waits_while_it_is_full_and_who_empties_it_while_it_is_empty() {
        let queue = RequestQueue::new(NonZeroUsize::MIN, Dispatch::OnDemand, TWO);
        let cancel = CancellationToken::new();
        let mut ids = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for request in requests(50) {
                    assert!(queue.push(request, &Events::default(), &cancel));
                }
                queue.close();
            });
            while queue.wait(0, &cancel) {
                let level = noted(&queue, 0, Levels::default());
                assert!(level.waiting <= 2, "{level:?}");
                ids.extend(queue.take(0).map(|request| request.id.0));
            }
        });
        assert_eq!(ids, (0..50).collect::<Vec<_>>());
        assert!(!queue.wait(0, &cancel), "a closed queue is at its end");
    }

    #[test]
    fn a_cancellation_ends_all_waiting() {
        let queue = RequestQueue::new(NonZeroUsize::MIN, Dispatch::OnDemand, NonZeroUsize::MIN);
        let cancel = CancellationToken::new();
        let [first, second] = <[Request; 2]>::try_from(requests(2)).unwrap();
        assert!(queue.push(first, &Events::default(), &cancel));
        std::thread::scope(|scope| {
            let pushed = scope.spawn(|| queue.push(second, &Events::default(), &cancel));
            cancel.cancel();
            assert!(!pushed.join().unwrap());
        });
        assert!(queue.take(0).is_some());
        // An engine looks at the cancellation itself.
        assert!(queue.wait(0, &cancel) && queue.take(0).is_none());
    }

    proptest! {
        /// Engines of any number, room and pace: each request is served once, in order, and an engine without work finds some as
        /// long as there is any.
        #[test]
        fn every_request_is_taken_once_and_no_idle_engine_is_refused(
            engines in 1..5usize, count in 0..60u32, paces in prop::collection::vec((0..5usize, 1..9usize, 0..9usize), 1..200),
        ) {
            let engines = NonZeroUsize::new(engines).unwrap();
            let queue = RequestQueue::holding(requests(count), engines, Dispatch::OnDemand, &Events::default());
            let mut held = vec![0usize; engines.get()];
            let mut order = Vec::new();
            for (engine, room, finished) in paces {
                let engine = engine % engines;
                let (before, had) = (order.len(), held[engine]);
                while held[engine] < had + room && let Some(request) = queue.take(engine) {
                    held[engine] += 1;
                    order.push(request.id.0);
                }
                let left = (count as usize).saturating_sub(before);
                prop_assert!(had > 0 || left == 0 || order.len() > before, "an idle engine was refused");
                held[engine] -= finished.min(held[engine]);
                let level = noted(&queue, engine, running(held[engine]));
                let sum: usize = held.iter().sum();
                prop_assert_eq!(level.running + level.waiting, sum + count as usize - order.len());
            }
            prop_assert_eq!(&order, &(0..order.len() as u32).collect::<Vec<_>>());
        }
    }
}

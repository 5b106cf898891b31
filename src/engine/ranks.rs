//! All ranks of one model, step by step: each a thread with its part of the weights and of the KV cache.
//!
//! One rank computes where it is called. This file knows nothing of how parts are made or what a step is about.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::ScopedJoinHandle;

use candle_core::Tensor;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::communicator::Group;
use super::decoder::Decoder;
use super::kv_cache::KvCache;
use super::step::Step;

/// One rank.
pub struct Rank {
    /// Its part of the model.
    pub decoder: Decoder,
    /// Keys and values of its heads.
    pub cache: KvCache,
}

/// What a rank ends a step with.
type Computed = Result<Option<Tensor>, Error>;

/// Every rank there is, and where they meet if they are several.
pub struct Ranks {
    first: Rank,
    others: Vec<Rank>,
    group: Option<Arc<Group>>,
}

impl Ranks {
    /// Rank 0, the others in order, and their group.
    pub fn new(first: Rank, others: Vec<Rank>, group: Option<Arc<Group>>) -> Self {
        Self { first, others, group }
    }

    /// Lets every rank compute `step`; the logits are those of [`Decoder::forward`] on rank 0.
    ///
    /// # Errors
    /// Of the rank that failed first; the others then stop, too.
    pub fn forward(&mut self, step: &Step, cancel: &CancellationToken) -> Computed {
        let Some(group) = &self.group else { return self.first.forward(step, cancel) };
        group.reset();
        let compute = |index: usize, rank: &mut Rank| {
            let mut watch = GivesUpUnlessDone { group, rank: index, done: false };
            let computed = rank.forward(step, cancel);
            watch.done = computed.is_ok();
            computed
        };
        let compute = &compute;
        let outcomes: Vec<Computed> = std::thread::scope(|scope| {
            let spawn = |(index, rank): (usize, _)| scope.spawn(move || compute(index + 1, rank));
            let others: Vec<ScopedJoinHandle<'_, Computed>> = self.others.iter_mut().enumerate().map(spawn).collect();
            let first = compute(0, &mut self.first);
            let join =
                |thread: ScopedJoinHandle<'_, Computed>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            std::iter::once(first).chain(others.into_iter().map(join)).collect()
        });
        let culprit = group.gave_up().unwrap_or(0);
        outcomes.into_iter().nth(culprit).unwrap_or(Err(Error::Cancelled))
    }
}

impl Rank {
    fn forward(&mut self, step: &Step, cancel: &CancellationToken) -> Computed {
        self.decoder.forward(step, &self.cache, cancel)
    }
}

/// Lets the other ranks know when this one returns early or panics.
struct GivesUpUnlessDone<'a> {
    group: &'a Group,
    rank: usize,
    done: bool,
}

impl Drop for GivesUpUnlessDone<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.group.give_up(self.rank);
        }
    }
}

//! All ranks of one model, step by step: each a thread with its part of the weights and of the KV cache.
//!
//! The first rank computes where it is called; the others have threads of their own that wait from step to step. This file
//! knows nothing of how parts are made or what a step is about.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use candle_core::Tensor;
use tokio_util::sync::CancellationToken;

use super::communicator::Group;
use super::world::World;
use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use crate::forward::decoder::Decoder;
use crate::forward::kv_cache::KvCache;
use crate::schedule::limits::EngineLimits;

/// One rank's model and cache.
pub struct Rank {
    /// Its part of the model.
    pub decoder: Decoder,
    /// Keys and values of its heads.
    pub cache: KvCache,
}

/// Every rank of this process, and where all ranks meet if they are several.
pub struct Executor {
    world: World,
    first: Rank,
    others: Vec<RankThread>,
    group: Option<Arc<dyn Group>>,
}

impl Executor {
    /// The first rank of those of `world` that are here, the others in order, and their group.
    pub fn new(world: World, first: Rank, others: Vec<Rank>, group: Option<Arc<dyn Group>>) -> Self {
        let start = |group: &Arc<dyn Group>| {
            let worker = |(rank, index)| RankThread::start(rank, index, Arc::clone(group));
            others.into_iter().zip(1..).map(worker).collect()
        };
        Self { world, first, others: group.as_ref().map_or_else(Vec::new, start), group }
    }

    /// All ranks of the model, and the nodes that they are on.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The first rank that is here.
    pub fn first(&self) -> &Decoder {
        &self.first.decoder
    }

    /// Lets every rank compute `step`, and `read` the logits of [`Decoder::forward`] on rank 0, while the others may still
    /// be at it. When this returns, no rank here holds `step` any more.
    ///
    /// # Errors
    /// The error of the rank that failed first, `read` being rank 0's part; the others then stop, too.
    pub fn forward<T>(
        &mut self,
        step: &Arc<ForwardBatch>,
        cancel: &CancellationToken,
        read: impl FnOnce(Option<Tensor>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.world.begin(step)?;
        let computed = self.compute(step, cancel, read);
        self.world.explain(computed)
    }

    /// Computes the next step that the leader does.
    ///
    /// # Errors
    /// As [`Self::forward`]; [`Error::Ended`] where there is none any more.
    pub fn follow(
        &mut self,
        step: &mut Arc<ForwardBatch>,
        limits: &EngineLimits,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let Some(nodes) = &self.world.nodes else { return Ok(()) };
        nodes.receive_step(ForwardBatch::lent(step), limits)?;
        self.forward(step, cancel, |_| Ok(()))
    }

    fn compute<T>(
        &mut self,
        step: &Arc<ForwardBatch>,
        cancel: &CancellationToken,
        read: impl FnOnce(Option<Tensor>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let first = &mut self.first;
        let follows = self.world.follows();
        let compute = || {
            let logits = first.decoder.forward(step, &first.cache, cancel)?;
            // Where logits are not read, nothing else waits.
            follows.then(|| first.decoder.wait()).transpose()?;
            read(logits)
        };
        // A single rank computes on the calling thread: no hand-over, which costs more than a small model's layer.
        let Some(group) = &self.group else { return compute() };
        group.begin();
        for worker in &self.others {
            worker.begin(Order::Step(Arc::clone(step), cancel.clone()));
        }
        // The first rank works on this thread, too: it would only wait for the others.
        let mut outcome = failing_unless_done(group.as_ref(), 0, compute);
        for (worker, index) in self.others.iter_mut().zip(1..) {
            let computed = worker.end();
            if let Err(error) = computed
                // The others fail because of the first that failed: its error is the cause, theirs only say so.
                && (outcome.is_ok() || group.failed_rank() == Some(index))
            {
                outcome = Err(error);
            }
        }
        outcome
    }

    /// Gives each rank another cache, in order of rank.
    ///
    /// # Errors
    /// [`Error::Cancelled`]: a rank's thread has ended.
    pub fn change_caches(&mut self, caches: Vec<KvCache>) -> Result<(), Error> {
        let mut caches = caches.into_iter();
        if let Some(cache) = caches.next() {
            self.first.cache = cache;
        }
        for (worker, cache) in self.others.iter_mut().zip(caches) {
            worker.begin(Order::Cache(cache));
            worker.end()?;
        }
        Ok(())
    }
}

/// Runs `compute`; when it fails or panics, this rank is marked as failed, so that others do not wait for it.
fn failing_unless_done<T>(
    group: &dyn Group,
    index: usize,
    compute: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    struct FailsOnDrop<'a>(&'a dyn Group, usize);
    impl Drop for FailsOnDrop<'_> {
        fn drop(&mut self) {
            self.0.mark_failed(self.1);
        }
    }
    let watch = FailsOnDrop(group, index);
    let computed = compute()?;
    // Reached only without error or panic: the guard must not speak then.
    std::mem::forget(watch);
    Ok(computed)
}

/// For another rank than the first.
enum Order {
    /// Compute a step.
    Step(Arc<ForwardBatch>, CancellationToken),
    /// Use this from now on.
    Cache(KvCache),
}

/// A rank's thread.
struct RankThread {
    /// `None` once it is to end.
    orders: Option<SyncSender<Order>>,
    outcomes: Receiver<Result<(), Error>>,
    thread: Option<JoinHandle<()>>,
}

impl RankThread {
    fn start(mut rank: Rank, index: usize, group: Arc<dyn Group>) -> Self {
        // Channels of one: a rank is never given a step before it has answered for the last one.
        let (orders, to_do) = sync_channel::<Order>(1);
        let (done, outcomes) = sync_channel(1);
        let work = move || {
            for order in to_do {
                let Rank { decoder, cache } = &mut rank;
                let outcome = match order {
                    Order::Step(step, cancel) => failing_unless_done(group.as_ref(), index, || {
                        // Whoever gave the order changes the step once it has the outcome.
                        let step = step;
                        decoder.forward(&step, cache, &cancel).and_then(|_| decoder.wait())
                    }),
                    Order::Cache(other) => {
                        *cache = other;
                        Ok(())
                    }
                };
                if done.send(outcome).is_err() {
                    return;
                }
            }
        };
        Self { orders: Some(orders), outcomes, thread: Some(std::thread::spawn(work)) }
    }

    fn begin(&self, order: Order) {
        // Where its thread has ended, so has its outcome, and that is asked for next.
        let _ended = self.orders.as_ref().map(|orders| orders.send(order));
    }

    /// Waits for the outcome of the last order; goes on with the panic of a rank that panicked.
    fn end(&mut self) -> Result<(), Error> {
        match self.outcomes.recv() {
            Ok(outcome) => outcome,
            Err(_) => match self.thread.take().map(JoinHandle::join) {
                Some(Err(panic)) => resume_unwind(panic),
                _ => Err(Error::Cancelled),
            },
        }
    }
}

impl Drop for RankThread {
    fn drop(&mut self) {
        self.orders = None;
        // A panic has been passed on, or there is another one on its way.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

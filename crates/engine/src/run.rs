//! Requests, step after step, until each has its tokens.
//!
//! Where the device runs ahead, a step is decided and queued while the one before it is computed, and tokens are read one step late
//! (as vLLM's asynchronous scheduling does). A sequence that a token ends is then in one step too many, whose outcome for it is
//! dropped: outputs are the same. On processors, where operations are done when they return, and with several ranks, of which only
//! one chooses tokens, each step's tokens are read before the next one is decided.

mod under_way;

use std::num::NonZeroUsize;
use std::time::Instant;

use candle_core::Tensor;
use tokio_util::sync::CancellationToken;

use crate::device::ops::{MaskLogits, Sample, Turn};
use crate::engine::Engine;
use crate::error::Error;
use crate::forward::batch::{ForwardBatch, LogitsRows};
use crate::forward::masks::ConstrainedSequences;
use crate::forward::sampling::SamplingKey;
use crate::report::CandleReport;
use crate::schedule::admission::AdmissionPolicy;
use crate::schedule::blocks::{BlockPool, BlockTable};
use crate::schedule::queue::{Dispatch, Levels, RequestQueue, Seat};
use crate::schedule::request::{Output, Request, Unconstrained};
use crate::schedule::scheduler::{Failed, Scheduler};
use crate::schedule::scheduler_output::{ScheduledSequence, SequenceIndex};
use crate::schedule::sequence::Sequence;
use flashjob_cpu::{NO_TOKEN, TokenChoice};
use flashjob_event::{Event, Events, Fact, FinishReason, StepNeeds};
use under_way::{StepUnderWay, StepsUnderWay};

/// How the next token of `sequence` is chosen.
fn choice(sequence: &Sequence) -> TokenChoice {
    let Request { sampling, seed, stream, .. } = *sequence.request();
    // Neither the batch nor a preemption changes these three, so neither changes the token; and all are known a step ahead.
    let choice = SamplingKey { seed, stream, position: sequence.num_tokens() as u32 }.choice(&sampling);
    match &sequence.request().options {
        Some(options) => choice.with_min_p(options.min_p),
        None => choice,
    }
}

impl Engine {
    /// Serves `requests` and hands each output to `finished` as soon as it is complete. What happens is stated in
    /// `events`, all but [`Fact::RequestFinished`], which is for whoever turns tokens into text. Nothing that an earlier
    /// run computed is found again, also where prefixes are cached. A request whose logits are not finite ends with
    /// `NotFinite`, and all others have the tokens that they would have without it.
    ///
    /// # Errors
    /// [`Error::Request`] before anything is computed, if one of them could never be served; [`Error::Cancelled`] within
    /// the time of one layer, or of the steps that are queued where the device runs ahead; [`Error::Compute`] when computing fails.
    pub fn run(
        &mut self,
        requests: Vec<Request>,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut dyn FnMut(Output),
    ) -> Result<(), Error> {
        // All of them before the first is stated: a refusal must not leave half of a workload behind in the figures.
        requests.iter().try_for_each(|request| request.check(&self.limits))?;
        let CandleReport { schedule, block_size, .. } = self.report;
        let queue = RequestQueue::new(NonZeroUsize::MIN, Dispatch::OnDemand, NonZeroUsize::MAX)
            .in_order_of(schedule, block_size)
            .filled(requests, events);
        self.serve(Seat { queue: &queue, engine: 0 }, events, cancel, finished)
    }

    /// Serves requests of the queue, from which it takes them as it has room, until that is closed and empty. As [`Engine::run`], but
    /// a request that could never be served ends with an output that says so, as it is taken.
    ///
    /// # Errors
    /// [`Error::Cancelled`] and [`Error::Compute`] as there.
    pub fn serve(
        &mut self,
        seat: Seat<'_>,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut dyn FnMut(Output),
    ) -> Result<(), Error> {
        // Each run begins with an empty cache: what a warm-up computed must not be found by what is measured after it.
        let pool = match self.report.prefix_caching {
            true => BlockPool::with_prefix_cache(self.limits.num_blocks as u32, self.limits.block_size),
            false => self.empty_pool(),
        };
        let admission = if self.replay.is_some() { AdmissionPolicy::InGroups } else { AdmissionPolicy::Immediate };
        let scheduler = Scheduler::new(self.limits, pool, admission);
        let told = Vec::with_capacity(self.limits.max_num_seqs);
        let most_ahead = usize::from(self.runs_ahead());
        let steps = StepsUnderWay::default();
        let constrained = ConstrainedSequences::new(self.limits.vocab_size);
        let mut run = Run { engine: self, scheduler, steps, most_ahead, told, constrained, seat, events, cancel };
        loop {
            run.step(finished)?;
            // An engine without sequences may only be ahead of those who make requests.
            if run.scheduler.is_done() && !seat.queue.wait(seat.engine, cancel) {
                return Ok(());
            }
        }
    }

    /// Logits at every position of `prompt`, each over the vocabulary.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn logits(&mut self, prompt: &[u32], cancel: &CancellationToken) -> Result<Vec<Vec<f32>>, Error> {
        let mut pool = self.empty_pool();
        let mut table = BlockTable::default();
        if pool.grow(&mut table, prompt.len()).is_err() || prompt.len() > self.limits.max_model_len {
            let (tokens, most) = (prompt.len(), self.limits.max_model_len);
            return Err(Error::Setting(format!("a prompt of {tokens} tokens is beyond the {most} that are served")));
        }
        let chunk = self.limits.max_num_logits();
        let mut rows = Vec::with_capacity(prompt.len());
        for (index, tokens) in prompt.chunks(chunk).enumerate() {
            let start = index * chunk;
            let batch = ForwardBatch::lent(&mut self.batch);
            batch.begin(start + tokens.len());
            batch.push(tokens, start, table.indices(), LogitsRows::All);
            let read = |logits: Option<Tensor>| logits.as_ref().map_or_else(|| Ok(Vec::new()), rows_of);
            rows.extend(self.executor.forward(&self.batch, cancel, read)?);
        }
        Ok(rows)
    }

    /// True where the next step is queued before the tokens of the last one are read.
    fn runs_ahead(&self) -> bool {
        // Whoever watches logits is shown those of one step before the next one overwrites them.
        self.report.async_scheduling && self.watcher.is_none() && !self.reads_at_once
    }

    fn empty_pool(&self) -> BlockPool {
        BlockPool::new(self.limits.num_blocks as u32, self.limits.block_size)
    }
}

/// Requests on their way through one engine.
struct Run<'a> {
    engine: &'a mut Engine,
    scheduler: Scheduler,
    /// Steps whose tokens are not read yet.
    steps: StepsUnderWay,
    /// Steps that may be so when the next one is decided.
    most_ahead: usize,
    /// Tokens of a step, as they are stated; reused.
    told: Vec<Event>,
    constrained: ConstrainedSequences,
    seat: Seat<'a>,
    events: &'a Events,
    cancel: &'a CancellationToken,
}

impl Run<'_> {
    /// Queues the next step, if there is anything to compute, and reads the tokens of those before it.
    fn step(&mut self, finished: &mut dyn FnMut(Output)) -> Result<(), Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if self.scheduler.is_short_of_blocks() || self.scheduler.needs_tokens() {
            self.read_all_but(0, finished)?;
        }
        // Scheduling counts as part of a step: tokens wait for it as they do for kernels.
        let begun = Instant::now();
        self.schedule(finished);
        let is_idle = self.scheduler.batch().scheduled.is_empty();
        if is_idle && self.steps.len() == 0 {
            self.note(|_levels| {});
            return Ok(());
        }
        self.announce();
        self.begin_constraints();
        if !is_idle {
            self.launch(begun)?;
        }
        // Where nothing can be decided, it is because of tokens that are not known. A mask takes the token before it to be known.
        let most_ahead = if is_idle || !self.constrained.is_empty() { 0 } else { self.most_ahead };
        self.read_all_but(most_ahead, finished)?;
        // What is still under way is for nobody: it ends before the run may.
        if self.scheduler.is_done() { self.read_all_but(0, finished) } else { Ok(()) }
    }

    /// Queues the step that was decided.
    fn launch(&mut self, begun: Instant) -> Result<(), Error> {
        let turn = self.steps.turn();
        let (prefill_tokens, decode_tokens) = self.build();
        let Seat { engine, .. } = self.seat;
        self.events.emit(Fact::StepStarted { engine, prefill_tokens, decode_tokens });
        let wants_logprobs = !self.engine.batch.logprobs().is_empty();
        self.compute(turn)?;
        let mut scheduled = self.steps.list();
        self.scheduler.begin(&mut scheduled);
        self.steps.push(StepUnderWay { scheduled, turn, wants_logprobs, begun, prefill_tokens, decode_tokens });
        Ok(())
    }

    /// Reads the tokens of all steps under way but the last `kept`.
    fn read_all_but(&mut self, kept: usize, finished: &mut dyn FnMut(Output)) -> Result<(), Error> {
        while self.steps.len() > kept
            && let Some(step) = self.steps.pop()
        {
            let needs = self.needs(&step.scheduled);
            self.read(&step, finished)?;
            let Seat { engine, .. } = self.seat;
            if let Some(needs) = needs {
                self.events.emit(Fact::StepNeeded { engine, needs });
            }
            let (prefill_tokens, decode_tokens) = (step.prefill_tokens, step.decode_tokens);
            let duration = self.steps.end(step);
            self.note(|Levels { running, waiting, kv_blocks_used }| {
                self.events.emit(Fact::StepFinished {
                    engine,
                    duration,
                    prefill_tokens,
                    decode_tokens,
                    running,
                    waiting,
                    kv_blocks_used,
                });
            });
        }
        Ok(())
    }

    /// Needs of a step, without those of sequences that had ended before it; `None` where all had.
    fn needs(&self, step: &[ScheduledSequence]) -> Option<StepNeeds> {
        let standing = || step.iter().filter(|scheduled| self.scheduler.stands(scheduled));
        let sampling = standing().filter(|scheduled| scheduled.samples).count();
        let cost = &self.engine.report.cost;
        standing().next().is_some().then(|| cost.of_step(standing().map(ScheduledSequence::positions), sampling))
    }

    /// Chooses the tokens of the next step, taking requests for which there is room.
    fn schedule(&mut self, finished: &mut dyn FnMut(Output)) {
        let (seat, limits) = (self.seat, self.engine.limits);
        let mut next = || loop {
            let request = seat.queue.take(seat.engine)?;
            match request.check(&limits) {
                Ok(()) => return Some(request),
                Err(refused) => finished(Output::refused(refused)),
            }
        };
        self.scheduler.schedule(seat.queue.waiting_for(seat.engine), &mut next);
    }

    /// Notes what this engine holds; has `tell` state what all engines of the queue hold, and the queue.
    fn note(&self, tell: impl FnOnce(Levels)) {
        let (scheduler, Seat { queue, engine }) = (&self.scheduler, self.seat);
        let (running, waiting) = (scheduler.running(), scheduler.waiting());
        queue.note(engine, Levels { running, waiting, kv_blocks_used: scheduler.pool().used() }, tell);
    }

    fn announce(&self) {
        let batch = self.scheduler.batch();
        let id = |&index: &SequenceIndex| self.scheduler.sequence(index).id();
        batch.preempted.iter().map(id).for_each(|request| self.events.emit(Fact::RequestPreempted { request }));
        for admission in &batch.admitted {
            let sequence = self.scheduler.sequence(admission.sequence);
            self.events.emit(Fact::RequestScheduled { request: sequence.id() });
            if self.engine.report.prefix_caching {
                self.events.emit(Fact::PrefixSearched {
                    request: sequence.id(),
                    prompt_tokens: sequence.num_prompt_tokens() as u32,
                    hit_tokens: admission.reused_tokens as u32,
                });
            }
        }
    }

    /// Has the first masks of sequences computed while their prompts are.
    fn begin_constraints(&mut self) {
        for admission in &self.scheduler.batch().admitted {
            let request = self.scheduler.sequence(admission.sequence).request();
            if let Some(constraint) = &request.constraint {
                self.constrained.begin(admission.sequence, constraint.clone());
            }
        }
    }

    /// Fills in the step's metadata; returns how many tokens prefill and how many decode.
    fn build(&mut self) -> (usize, usize) {
        let Engine { batch, replay, limits, .. } = &mut *self.engine;
        let batch = ForwardBatch::lent(batch);
        let all = &self.scheduler.batch().scheduled;
        let (mut prefill_tokens, mut decode_tokens) = (0, 0);
        let longest = all.iter().map(|scheduled| scheduled.positions().end).max().unwrap_or(0);
        let replay = replay.filter(|_| all.iter().all(|scheduled| scheduled.decodes)).map(|sizes| {
            let size = sizes.at_least(all.len(), longest.div_ceil(limits.block_size));
            (size, sizes.spare_block)
        });
        // A replayed step has a table as wide as its size, whatever its sequences need.
        batch.begin(replay.map_or(longest, |(size, _)| size.max_blocks * limits.block_size));
        for scheduled in all {
            let sequence = self.scheduler.sequence(scheduled.sequence);
            let (start, blocks) = (scheduled.num_computed_tokens, sequence.table().indices());
            let wanted = if scheduled.samples { LogitsRows::Last } else { LogitsRows::None };
            match sequence.tokens().get(scheduled.positions()) {
                Some(tokens) => batch.push(tokens, start, blocks, wanted),
                // The step before chooses it, and is under way.
                None => batch.push_chosen(sequence.place(), start, blocks, wanted),
            }
            *(if scheduled.decodes { &mut decode_tokens } else { &mut prefill_tokens }) +=
                scheduled.num_scheduled_tokens;
            if scheduled.samples {
                batch.choose(choice(sequence));
                if let Some(count) = sequence.request().options.as_ref().and_then(|options| options.logprobs) {
                    batch.want_logprobs(count);
                }
                // Behind its choice, whose row they are for. Most sequences have none.
                if let Some(adjusts) = sequence.adjustments() {
                    let (row, adjustments) = batch.adjust();
                    adjusts.push(row, sequence.num_tokens() - sequence.num_prompt_tokens(), adjustments);
                }
            }
        }
        if let Some((size, spare_block)) = replay {
            batch.fill_up(size, spare_block);
        }
        (prefill_tokens, decode_tokens)
    }

    /// Computes the step that was filled in, or queues it, up to its tokens.
    fn compute(&mut self, turn: Turn) -> Result<(), Error> {
        let Engine { executor, batch, device, watcher, .. } = &mut *self.engine;
        let (scheduler, constrained) = (&self.scheduler, &mut self.constrained);
        executor.forward(batch, self.cancel, |logits| {
            let Some(logits) = logits else { return Ok(()) };
            if let Some(watcher) = watcher {
                let sampling = scheduler.batch().scheduled.iter().filter(|scheduled| scheduled.samples);
                for (scheduled, row) in sampling.zip(rows_of(&logits)?) {
                    let sequence = scheduler.sequence(scheduled.sequence);
                    watcher(sequence.id(), sequence.num_tokens(), &row);
                }
            }
            let sampling = scheduler.batch().scheduled.iter().filter(|scheduled| scheduled.samples);
            let masks = constrained.masks(sampling.map(|scheduled| scheduled.sequence));
            if !masks.is_empty() {
                let masked = MaskLogits { logits: &logits, masks };
                device.mask_logits(&masked).map_err(Error::compute("mask logits"))?;
            }
            let sample = Sample { logits: &logits, step: batch, turn };
            device.choose(&sample).map_err(Error::compute("choose tokens"))
        })
    }

    /// Waits for the tokens of a step, and gives each sequence that gets one its token.
    fn read(&mut self, step: &StepUnderWay, finished: &mut dyn FnMut(Output)) -> Result<(), Error> {
        let Engine { chosen, logprobs, device, .. } = &mut *self.engine;
        let (scheduler, steps, constrained) = (&mut self.scheduler, &step.scheduled, &mut self.constrained);
        let sampling = || steps.iter().filter(|scheduled| scheduled.samples);
        chosen.resize(sampling().count(), 0);
        device.read_tokens(step.turn, chosen).map_err(Error::compute("choose tokens"))?;
        if step.wants_logprobs {
            device.read_logprobs(step.turn, chosen, logprobs).map_err(Error::compute("read log-probabilities"))?;
            // Rows are those of sequences that got a token, in their order.
            let sampled: Vec<&ScheduledSequence> = sampling().collect();
            for (row, of_token) in logprobs.drain(..) {
                if scheduler.stands(sampled[row]) {
                    scheduler.note_logprobs(sampled[row].sequence, of_token);
                }
            }
        }
        // No token is chosen of those that must not have any.
        for (scheduled, token) in sampling().zip(chosen.iter_mut()) {
            if constrained.failure(scheduled.sequence).is_some() {
                *token = NO_TOKEN;
            }
        }
        let tokens = &*chosen;
        let chosen = || sampling().zip(tokens.iter().copied());
        for (scheduled, _) in chosen().filter(|&(_, token)| token == NO_TOKEN) {
            if !scheduler.stands(scheduled) {
                continue;
            }
            let index = scheduled.sequence;
            if let Some(reason) = constrained.failure(index) {
                let (request, reason) = (scheduler.sequence(index).id(), reason.to_owned());
                constrained.end(index);
                finished(scheduler.abort(index, Unconstrained { request, reason }.into()));
                continue;
            }
            match scheduler.fail(index) {
                Failed::Over(output) => {
                    constrained.end(index);
                    finished(output);
                }
                Failed::ComputedAgain => {
                    let request = scheduler.sequence(scheduled.sequence).id();
                    self.events.emit(Fact::RequestPreempted { request });
                }
            }
        }
        scheduler.advance(steps);
        // One moment for all tokens of a step: they were there at once, whoever is told first.
        let now = Instant::now();
        self.told.clear();
        let generated = chosen().filter(|&(scheduled, _)| scheduler.stands(scheduled));
        self.told.extend(generated.map(|(scheduled, token)| {
            let request = scheduler.sequence(scheduled.sequence).id();
            Event { at: now, fact: Fact::TokenGenerated { request, token } }
        }));
        self.events.emit_all(&self.told);
        for (scheduled, token) in chosen() {
            if !scheduler.stands(scheduled) {
                continue;
            }
            let index = scheduled.sequence;
            let end = match scheduler.append(index, token) {
                Some(FinishReason::Stop) => Some(FinishReason::Stop),
                end => match constrained.accept(index, token) {
                    Ok(true) => Some(FinishReason::Stop),
                    Ok(false) => end,
                    Err(reason) => {
                        let request = scheduler.sequence(index).id();
                        constrained.end(index);
                        finished(scheduler.abort(index, Unconstrained { request, reason }.into()));
                        continue;
                    }
                },
            };
            if let Some(reason) = end {
                constrained.end(index);
                finished(scheduler.finish(index, reason));
            }
        }
        // Only now: a thread that computes masks shares what taking a token in needs.
        constrained.compute_next(sampling().map(|scheduled| scheduled.sequence));
        Ok(())
    }
}

fn rows_of(logits: &Tensor) -> Result<Vec<Vec<f32>>, Error> {
    logits.to_vec2().map_err(Error::compute("read logits"))
}

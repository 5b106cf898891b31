//! Requests, step after step, until each has its tokens.

use std::time::Instant;

use candle_core::Tensor;
use tokio_util::sync::CancellationToken;

use crate::cost::StepCost;
use crate::engine::Engine;
use crate::error::Error;
use crate::forward::batch::{ForwardBatch, LogitsRows};
use crate::forward::sampler::SamplingRow;
use crate::forward::sampling::SamplingKey;
use crate::schedule::blocks::{BlockPool, BlockTable};
use crate::schedule::request::{NeverFits, Output, Request};
use crate::schedule::scheduler::{Failed, Scheduler};
use crate::schedule::scheduler_output::SequenceIndex;
use crate::schedule::sequence::Sequence;
use flashjob_event::{Events, Fact, RequestId};

/// The row of the sampler that chooses the next token of `sequence`.
fn sampling_row(sequence: &Sequence) -> SamplingRow {
    let Request { id: RequestId(request), sampling, seed, .. } = *sequence.request();
    // Neither the batch nor a preemption changes these three, so neither changes the token.
    SamplingRow { sampling, key: SamplingKey { seed, request, position: sequence.num_tokens() as u32 } }
}

impl Engine {
    /// Serves `requests` and hands each output to `finished` as soon as it is complete. What happens is stated in
    /// `events`, all but [`Fact::RequestFinished`], which is for whoever turns tokens into text. Nothing that an earlier
    /// run computed is found again, also where prefixes are cached. A request whose logits are not finite ends with
    /// `NotFinite`, and all others have the tokens that they would have without it.
    ///
    /// # Errors
    /// [`Error::Request`] before anything is computed, if one of them could never be served; [`Error::Cancelled`] within
    /// the time of one layer; [`Error::Compute`] when computing fails.
    pub fn run(
        &mut self,
        requests: Vec<Request>,
        events: &Events,
        cancel: &CancellationToken,
        finished: &mut dyn FnMut(Output),
    ) -> Result<(), Error> {
        // Each run begins with an empty cache: what a warm-up computed must not be found by what is measured after it.
        let pool = match self.report.prefix_caching {
            true => BlockPool::with_prefix_cache(self.limits.num_blocks as u32, self.limits.block_size),
            false => self.empty_pool(),
        };
        let mut scheduler = Scheduler::new(self.limits, pool);
        // All of them before the first is stated: a refusal must not leave half of a workload behind in the figures.
        requests.iter().try_for_each(|request| self.validate(request, &scheduler))?;
        for request in &requests {
            let prompt_tokens = request.prompt.len() as u32;
            events.emit(Fact::RequestQueued { request: request.id, prompt_tokens });
        }
        for request in requests {
            let id = request.id;
            scheduler.add(request).map_err(|never| never_fits(id, never))?;
        }
        let sampling = Vec::with_capacity(self.limits.max_num_seqs);
        let rows = Vec::with_capacity(self.limits.max_num_seqs);
        let mut run = Run { engine: self, scheduler, sampling, rows, events, cancel };
        while !run.scheduler.is_done() {
            run.step(finished)?;
        }
        Ok(())
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

    fn empty_pool(&self) -> BlockPool {
        BlockPool::new(self.limits.num_blocks as u32, self.limits.block_size)
    }

    /// Refuses a request that could never be served.
    fn validate(&self, request: &Request, scheduler: &Scheduler) -> Result<(), Error> {
        let refuse = |reason: String| Err(Error::Request { request: request.id, reason });
        let (prompt, max_tokens) = (request.prompt.len(), request.max_tokens);
        if prompt == 0 {
            return refuse("its prompt is empty; give it at least one token".into());
        }
        if max_tokens == 0 {
            return refuse("it asks for no tokens; ask for at least one".into());
        }
        if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= self.limits.vocab_size) {
            let rows = self.limits.vocab_size;
            return refuse(format!(
                "its prompt has token {token}, but the model's ids end below {rows}; use the model's own tokenizer"
            ));
        }
        let longest = self.limits.max_model_len;
        if prompt.saturating_add(max_tokens) > longest {
            return refuse(format!(
                "{prompt} prompt tokens and {max_tokens} new ones are more than max-model-len, which is {longest}; shorten \
                 it or raise max-model-len"
            ));
        }
        let needed = scheduler.needed_blocks(prompt, max_tokens);
        needed.map(|_blocks| ()).map_err(|never| never_fits(request.id, never))
    }
}

/// The refusal of a request that is longer than the whole cache.
fn never_fits(request: RequestId, never: NeverFits) -> Error {
    let NeverFits { needed_tokens, cache_tokens } = never;
    let reason = format!(
        "it needs {needed_tokens} tokens in the KV cache, which holds {cache_tokens}; shorten it or give the cache more \
         memory"
    );
    Error::Request { request, reason }
}

/// Requests on their way through one engine.
struct Run<'a> {
    engine: &'a mut Engine,
    scheduler: Scheduler,
    /// Sequences that get a token in this step, and the sampler's rows for them; reused.
    sampling: Vec<SequenceIndex>,
    rows: Vec<SamplingRow>,
    events: &'a Events,
    cancel: &'a CancellationToken,
}

impl Run<'_> {
    fn step(&mut self, finished: &mut dyn FnMut(Output)) -> Result<(), Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        // Scheduling counts as part of a step: tokens wait for it as they do for kernels.
        let started = Instant::now();
        self.scheduler.schedule();
        self.announce();
        let (prefill_tokens, decode_tokens) = self.build();
        let positions = self.scheduler.batch().scheduled.iter().map(|scheduled| scheduled.positions());
        let StepCost { flops, bytes } = self.engine.report.cost.of_step(positions, self.sampling.len());
        self.compute(finished)?;
        self.events.emit(Fact::StepNeeded { flops, bytes });
        self.events.emit(Fact::StepFinished {
            duration: started.elapsed(),
            prefill_tokens,
            decode_tokens,
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            kv_blocks_used: self.scheduler.pool().used(),
        });
        Ok(())
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

    /// Fills in the step's metadata; returns how many tokens prefill and how many decode.
    fn build(&mut self) -> (usize, usize) {
        self.sampling.clear();
        self.rows.clear();
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
            let tokens = &sequence.tokens()[scheduled.positions()];
            let wanted = if scheduled.samples { LogitsRows::Last } else { LogitsRows::None };
            batch.push(tokens, scheduled.num_computed_tokens, sequence.table().indices(), wanted);
            *(if scheduled.decodes { &mut decode_tokens } else { &mut prefill_tokens }) += tokens.len();
            if scheduled.samples {
                self.sampling.push(scheduled.sequence);
                self.rows.push(sampling_row(sequence));
            }
        }
        if let Some((size, spare_block)) = replay {
            batch.fill_up(size, spare_block);
        }
        (prefill_tokens, decode_tokens)
    }

    /// Computes the step, and gives each sequence that gets a token its token.
    fn compute(&mut self, finished: &mut dyn FnMut(Output)) -> Result<(), Error> {
        let Engine { executor, batch, sampler, device, watcher, .. } = &mut *self.engine;
        let (scheduler, rows, sampling) = (&mut self.scheduler, &self.rows, &self.sampling);
        let tokens = executor.forward(batch, self.cancel, |logits| {
            let Some(logits) = logits else { return Ok(&[][..]) };
            if let Some(watcher) = watcher {
                for (&index, row) in sampling.iter().zip(rows_of(&logits)?) {
                    let sequence = scheduler.sequence(index);
                    watcher(sequence.id(), sequence.num_tokens(), &row);
                }
            }
            sampler.choose(device.as_ref(), &logits, rows)
        })?;
        let chosen = || sampling.iter().copied().zip(tokens);
        for (index, _) in chosen().filter(|(_, token)| token.is_err()) {
            match scheduler.fail(index) {
                Failed::Over(output) => finished(output),
                Failed::ComputedAgain => {
                    self.events.emit(Fact::RequestPreempted { request: scheduler.sequence(index).id() });
                }
            }
        }
        scheduler.advance();
        // One moment for all tokens of a step: they were there at once, whoever is told first.
        let now = Instant::now();
        for (index, token) in chosen().filter_map(|(index, token)| Some((index, (*token).ok()?))) {
            let request = scheduler.sequence(index).id();
            self.events.emit_at(now, Fact::TokenGenerated { request, token });
            if let Some(reason) = scheduler.append(index, token) {
                finished(scheduler.finish(index, reason));
            }
        }
        Ok(())
    }
}

fn rows_of(logits: &Tensor) -> Result<Vec<Vec<f32>>, Error> {
    logits.to_vec2().map_err(Error::compute("read logits"))
}

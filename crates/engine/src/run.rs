//! Requests, step after step, until each has its tokens.

use std::time::Instant;

use candle_core::Tensor;
use tokio_util::sync::CancellationToken;

use crate::cost::StepCost;
use crate::engine::Engine;
use crate::error::Error;
use crate::forward::batch::{Step, Wanted};
use crate::forward::sampler::Choice;
use crate::forward::sampling::Draw;
use crate::schedule::blocks::{BlockPool, BlockTable};
use crate::schedule::request::NotFinite;
use crate::schedule::request::Output;
use crate::schedule::request::Request;
use crate::schedule::scheduler::{Failed, Limits, Scheduler, SequenceIndex};
use flashjob_event::{Events, Fact, FinishReason, RequestId};

/// A request on its way: its prompt, and behind it what was generated.
struct Sequence {
    request: Request,
    prompt_len: usize,
    tokens: Vec<u32>,
}

impl Sequence {
    fn new(mut request: Request) -> Self {
        let mut tokens = std::mem::take(&mut request.prompt);
        tokens.reserve_exact(request.max_new_tokens);
        Self { prompt_len: tokens.len(), request, tokens }
    }

    fn choice(&self) -> Choice {
        let Request { id: RequestId(request), sampling, seed, .. } = self.request;
        Choice { sampling, draw: Draw { seed, request, position: self.tokens.len() as u32 } }
    }

    /// Takes the next token in; says why it was the last, if it was.
    fn push(&mut self, token: u32) -> Option<FinishReason> {
        self.tokens.push(token);
        if self.request.stop_tokens.contains(&token) {
            Some(FinishReason::Stop)
        } else if self.tokens.len() - self.prompt_len == self.request.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    fn output(&mut self, reason: FinishReason) -> Output {
        let tokens = self.tokens.split_off(self.prompt_len);
        self.tokens = Vec::new();
        Output { id: self.request.id, tokens, reason, error: None }
    }

    /// The end of a request whose next token cannot be chosen; it keeps those that it has.
    fn not_finite(&mut self) -> Output {
        let error = NotFinite { request: self.request.id, position: self.tokens.len() };
        Output { error: Some(error), ..self.output(FinishReason::Error) }
    }
}

impl Engine {
    /// Serves `requests` and hands each output to `finished` as soon as it is complete. What happens is stated in
    /// `events`, all but [`Fact::RequestFinished`], which is for whoever turns tokens into text. Nothing that an earlier
    /// run computed is found again, also where prefixes are cached. A request whose logits are not finite ends with
    /// [`NotFinite`], and all others have the tokens that they would have without it.
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
        let limits =
            Limits { max_num_seqs: self.facts.max_num_seqs, max_num_batched_tokens: self.facts.max_num_batched_tokens };
        // Each run begins with an empty cache: what a warm-up computed must not be found by what is measured after it.
        let pool = match self.facts.prefix_caching {
            true => BlockPool::with_prefix_cache(self.facts.kv_blocks as u32, self.facts.block_tokens),
            false => self.empty_pool(),
        };
        let mut scheduler = Scheduler::new(limits, pool);
        for request in &requests {
            self.check(request, &mut scheduler)?;
        }
        for request in &requests {
            let prompt_tokens = request.prompt.len() as u32;
            events.emit(Fact::RequestQueued { request: request.id, prompt_tokens });
        }
        let sequences = requests.into_iter().map(Sequence::new).collect();
        let sampling = Vec::with_capacity(limits.max_num_seqs);
        let choices = Vec::with_capacity(limits.max_num_seqs);
        let mut run = Run { engine: self, scheduler, sequences, sampling, choices, events, cancel };
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
        if pool.grow(&mut table, prompt.len()).is_err() || prompt.len() > self.facts.max_model_len {
            let (tokens, most) = (prompt.len(), self.facts.max_model_len);
            return Err(Error::Setting(format!("a prompt of {tokens} tokens is beyond the {most} that are served")));
        }
        let chunk = self.facts.max_num_batched_tokens.min(self.facts.max_num_seqs);
        let mut rows = Vec::with_capacity(prompt.len());
        for (index, tokens) in prompt.chunks(chunk).enumerate() {
            let start = index * chunk;
            let step = Step::lent(&mut self.step);
            step.begin(start + tokens.len());
            step.push(tokens, start, &table, Wanted::All);
            let read = |logits: Option<Tensor>| logits.as_ref().map_or_else(|| Ok(Vec::new()), rows_of);
            rows.extend(self.ranks.forward(&self.step, cancel, read)?);
        }
        Ok(rows)
    }

    fn empty_pool(&self) -> BlockPool {
        BlockPool::new(self.facts.kv_blocks as u32, self.facts.block_tokens)
    }

    /// Queues a request, or says why it could never be served.
    fn check(&self, request: &Request, scheduler: &mut Scheduler) -> Result<(), Error> {
        let refuse = |reason: String| Err(Error::Request { request: request.id, reason });
        let (prompt, max_new) = (request.prompt.len(), request.max_new_tokens);
        if prompt == 0 {
            return refuse("its prompt is empty; give it at least one token".into());
        }
        if max_new == 0 {
            return refuse("it asks for no tokens; ask for at least one".into());
        }
        if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= self.vocab_size) {
            let rows = self.vocab_size;
            return refuse(format!(
                "its prompt has token {token}, but the model's ids end below {rows}; use the model's own tokenizer"
            ));
        }
        let longest = self.facts.max_model_len;
        if prompt.saturating_add(max_new) > longest {
            return refuse(format!(
                "{prompt} prompt tokens and {max_new} new ones are more than max-model-len, which is {longest}; shorten \
                 it or raise max-model-len"
            ));
        }
        if let Err(never) = scheduler.add(prompt, max_new) {
            return refuse(format!(
                "it needs {} tokens in the KV cache, which holds {}; shorten it or give the cache more memory",
                never.needed_tokens, never.cache_tokens
            ));
        }
        Ok(())
    }
}

struct Run<'a> {
    engine: &'a mut Engine,
    scheduler: Scheduler,
    /// By the scheduler's index.
    sequences: Vec<Sequence>,
    /// Sequences that get a token in this step, and how; reused.
    sampling: Vec<SequenceIndex>,
    choices: Vec<Choice>,
    events: &'a Events,
    cancel: &'a CancellationToken,
}

impl Run<'_> {
    fn step(&mut self, finished: &mut dyn FnMut(Output)) -> Result<(), Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let started = Instant::now();
        let sequences = &self.sequences;
        self.scheduler.schedule(&|index| &sequences[index].tokens);
        self.announce();
        let (prefill_tokens, decode_tokens) = self.build();
        let chunks = self.scheduler.batch().chunks.iter().map(|chunk| chunk.positions.clone());
        let StepCost { flops, bytes } = self.engine.facts.cost.of_step(chunks, self.sampling.len());
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
        let id = |&index: &SequenceIndex| self.sequences[index].request.id;
        batch.preempted.iter().map(id).for_each(|request| self.events.emit(Fact::RequestPreempted { request }));
        for admission in &batch.admitted {
            let Sequence { request, prompt_len, .. } = &self.sequences[admission.sequence];
            self.events.emit(Fact::RequestScheduled { request: request.id });
            if self.engine.facts.prefix_caching {
                self.events.emit(Fact::PrefixSearched {
                    request: request.id,
                    prompt_tokens: *prompt_len as u32,
                    hit_tokens: admission.reused_tokens as u32,
                });
            }
        }
    }

    /// Fills in the step's metadata; returns how many tokens prefill and how many decode.
    fn build(&mut self) -> (usize, usize) {
        self.sampling.clear();
        self.choices.clear();
        let Engine { step, replay, facts, .. } = &mut *self.engine;
        let step = Step::lent(step);
        let chunks = &self.scheduler.batch().chunks;
        let (mut prefill_tokens, mut decode_tokens) = (0, 0);
        let longest = chunks.iter().map(|chunk| chunk.positions.end).max().unwrap_or(0);
        let replay = replay.filter(|_| chunks.iter().all(|chunk| chunk.decodes)).map(|sizes| {
            let size = sizes.at_least(chunks.len(), longest.div_ceil(facts.block_tokens));
            (size, sizes.spare_block)
        });
        step.begin(replay.map_or(longest, |(size, _)| size.max_blocks * facts.block_tokens));
        for chunk in chunks {
            let sequence = &self.sequences[chunk.sequence];
            let tokens = &sequence.tokens[chunk.positions.clone()];
            let wanted = if chunk.samples { Wanted::Last } else { Wanted::None };
            step.push(tokens, chunk.positions.start, self.scheduler.table(chunk.sequence), wanted);
            *(if chunk.decodes { &mut decode_tokens } else { &mut prefill_tokens }) += tokens.len();
            if chunk.samples {
                self.sampling.push(chunk.sequence);
                self.choices.push(sequence.choice());
            }
        }
        if let Some((size, spare_block)) = replay {
            step.fill_up(size, spare_block);
        }
        (prefill_tokens, decode_tokens)
    }

    /// Computes the step, and gives each sequence that gets a token its token.
    fn compute(&mut self, finished: &mut dyn FnMut(Output)) -> Result<(), Error> {
        let Engine { ranks, step, sampler, processor, watcher, .. } = &mut *self.engine;
        let (sequences, choices, sampling) = (&mut self.sequences, &self.choices, &self.sampling);
        let tokens = ranks.forward(step, self.cancel, |logits| {
            let Some(logits) = logits else { return Ok(&[][..]) };
            if let Some(watcher) = watcher {
                for (&index, row) in sampling.iter().zip(rows_of(&logits)?) {
                    watcher(sequences[index].request.id, sequences[index].tokens.len(), &row);
                }
            }
            sampler.choose(processor, &logits, choices)
        })?;
        let chosen = || sampling.iter().copied().zip(tokens);
        for (index, _) in chosen().filter(|(_, token)| token.is_err()) {
            match self.scheduler.fail(index) {
                Failed::Over => finished(sequences[index].not_finite()),
                Failed::ComputedAgain => {
                    self.events.emit(Fact::RequestPreempted { request: sequences[index].request.id });
                }
            }
        }
        self.scheduler.advance(&|index| &sequences[index].tokens);
        let now = Instant::now();
        for (index, token) in chosen().filter_map(|(index, token)| Some((index, (*token).ok()?))) {
            let sequence = &mut sequences[index];
            let request = sequence.request.id;
            self.events.emit_at(now, Fact::TokenGenerated { request, token });
            if let Some(reason) = sequence.push(token) {
                self.scheduler.finish(index);
                finished(sequence.output(reason));
            }
        }
        Ok(())
    }
}

fn rows_of(logits: &Tensor) -> Result<Vec<Vec<f32>>, Error> {
    logits.to_vec2().map_err(Error::compute("read logits"))
}

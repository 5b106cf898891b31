//! A request on its way through the scheduler: its tokens, and how many of them are in the cache.

use super::blocks::{BlockPool, BlockTable};
use super::request::{NotFinite, Output, Request};
use flashjob_event::{FinishReason, RequestId};

/// Tokens of one request, prompt and generated ones, and their blocks of the KV cache.
#[derive(Debug)]
pub struct Sequence {
    /// The request without its prompt, which begins `tokens`.
    request: Request,
    num_prompt_tokens: usize,
    tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub(super) num_computed_tokens: usize,
    /// Decoding begins once this many are computed: the prompt, and after a preemption what was generated before it.
    pub(super) num_prefill_tokens: usize,
    pub(super) table: BlockTable,
    pub(super) has_run: bool,
    /// Tokens at its beginning that other sequences had computed.
    pub(super) num_reused_tokens: usize,
    /// It neither reads blocks of other sequences nor leaves them its own.
    pub(super) is_isolated: bool,
}

impl Sequence {
    /// A sequence that has not run; `table` is empty.
    pub(super) fn new(mut request: Request, table: BlockTable) -> Self {
        let mut tokens = std::mem::take(&mut request.prompt);
        // All at once: a steady step allocates nothing.
        tokens.reserve_exact(request.max_tokens);
        Self {
            num_prompt_tokens: tokens.len(),
            num_prefill_tokens: tokens.len(),
            request,
            tokens,
            num_computed_tokens: 0,
            table,
            has_run: false,
            num_reused_tokens: 0,
            is_isolated: false,
        }
    }

    /// The name of its request.
    pub fn id(&self) -> RequestId {
        self.request.id
    }

    /// Settings of its request; the prompt is in [`Self::tokens`].
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Tokens that it began with.
    pub fn num_prompt_tokens(&self) -> usize {
        self.num_prompt_tokens
    }

    /// Ids of all known tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Known tokens: prompt and generated ones.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Blocks in the order of its tokens.
    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    /// True once all that was known when it began to run is computed.
    pub(super) fn is_decoding(&self) -> bool {
        self.num_computed_tokens >= self.num_prefill_tokens
    }

    /// Begins its empty table with blocks that are known to hold its first tokens; returns how many tokens these are.
    pub(super) fn reuse(&mut self, pool: &mut BlockPool) -> usize {
        pool.reuse(&mut self.table, &self.tokens)
    }

    /// Lets others find its full blocks.
    pub(super) fn remember(&mut self, pool: &mut BlockPool) {
        pool.remember(&mut self.table, &self.tokens[..self.num_computed_tokens]);
    }

    /// Takes the next token in; gives the reason why it was the last, if it was.
    pub(super) fn append(&mut self, token: u32) -> Option<FinishReason> {
        self.tokens.push(token);
        if self.request.stop_tokens.contains(&token) {
            Some(FinishReason::Stop)
        } else if self.tokens.len() - self.num_prompt_tokens == self.request.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Hands out what was generated.
    pub(super) fn take_output(&mut self, reason: FinishReason) -> Output {
        let tokens = self.tokens.split_off(self.num_prompt_tokens);
        // Many requests wait for the end of a run: what is left of this one is given back now.
        self.tokens = Vec::new();
        Output { id: self.request.id, tokens, reason, error: None }
    }

    /// The output of a request whose next token cannot be chosen; it keeps those that it has.
    pub(super) fn take_failed_output(&mut self) -> Output {
        let error = NotFinite { request: self.request.id, position: self.tokens.len() };
        Output { error: Some(error), ..self.take_output(FinishReason::Error) }
    }
}

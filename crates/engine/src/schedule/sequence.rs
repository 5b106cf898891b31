//! A request on its way through the scheduler: its tokens, and how many of them are in the cache.

use super::blocks::{BlockPool, BlockTable};
use super::request::{Output, Request, RequestError};
use super::sequence_adjustments::SequenceAdjustments;
use super::stop_texts::StopSearch;
use flashjob_cpu::TokenLogprobs;
use flashjob_event::{FinishReason, RequestId};

/// Tokens of one request, prompt and generated ones, and their blocks of the KV cache.
#[derive(Debug)]
pub struct Sequence {
    /// The request without its prompt, which begins `tokens`.
    request: Request,
    num_prompt_tokens: usize,
    tokens: Vec<u32>,
    /// Log-probabilities of generated tokens, where they are wanted.
    logprobs: Vec<TokenLogprobs>,
    /// Changes of its logits, where its options make any.
    adjustments: Option<Box<SequenceAdjustments>>,
    /// The search of a request that has stop texts.
    stop_search: Option<StopSearch>,
    /// A stop text is complete.
    is_stopped_by_text: bool,
    /// Tokens behind those that steps under way choose: they count, but are not known yet.
    num_pending: usize,
    /// Place of the last of them among the tokens of its step.
    place: u32,
    /// Number of times that it has lost its blocks, and with them the tokens that were pending.
    pub(super) restarts: u32,
    /// Tokens whose keys and values are in the cache, once all steps under way are done.
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
        let options = request.options.as_ref();
        let adjustments =
            options.and_then(|options| SequenceAdjustments::new(options, &request.stop_tokens, &tokens)).map(Box::new);
        // All at once: a steady step allocates nothing.
        tokens.reserve_exact(request.max_tokens);
        Self {
            stop_search: request.stop_texts.as_ref().map(StopSearch::new),
            is_stopped_by_text: false,
            num_prompt_tokens: tokens.len(),
            num_prefill_tokens: tokens.len(),
            request,
            tokens,
            logprobs: Vec::new(),
            adjustments,
            num_pending: 0,
            place: 0,
            restarts: 0,
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

    /// Prompt and generated tokens, those included that steps under way choose.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len() + self.num_pending
    }

    /// Place of the last token among those that its step chooses, where its id is not known yet.
    pub fn place(&self) -> u32 {
        self.place
    }

    /// True where it has all tokens that it asked for, known or not: nothing more is computed.
    pub(super) fn is_complete(&self) -> bool {
        self.num_tokens() - self.num_prompt_tokens >= self.request.max_tokens
    }

    /// A step under way chooses its next token, as the one at this `place`.
    pub(super) fn expect(&mut self, place: u32) {
        self.num_pending += 1;
        self.place = place;
    }

    /// Gives up what is computed of it, and tokens that are not known.
    pub(super) fn restart(&mut self) {
        self.restarts += 1;
        self.num_pending = 0;
        self.num_computed_tokens = 0;
        // Generated tokens are known, so that they are recomputed at the speed of a prompt.
        self.num_prefill_tokens = self.tokens.len();
    }

    /// Changes of the logits of its next token.
    pub fn adjustments(&self) -> Option<&SequenceAdjustments> {
        self.adjustments.as_deref()
    }

    /// True where the changes of its next logits follow from tokens that are not known yet, or log-probabilities that come with them are to
    /// be read first.
    pub(super) fn needs_tokens(&self) -> bool {
        let wants_logprobs = || self.request.options.as_ref().is_some_and(|options| options.logprobs.is_some());
        let counts_tokens = || self.adjustments().is_some_and(SequenceAdjustments::counts_tokens);
        self.num_pending > 0 && (counts_tokens() || wants_logprobs())
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

    /// Lets others find its full blocks, of which `computed` tokens are done.
    pub(super) fn remember(&mut self, pool: &mut BlockPool, computed: usize) {
        pool.remember(&mut self.table, &self.tokens[..computed]);
    }

    /// Keeps log-probabilities of the token that it is about to get.
    pub(super) fn note_logprobs(&mut self, of_token: TokenLogprobs) {
        self.logprobs.push(of_token);
    }

    /// Takes the next token in; gives the reason why it was the last, if it was.
    pub(super) fn append(&mut self, token: u32) -> Option<FinishReason> {
        self.num_pending -= 1;
        self.tokens.push(token);
        if let Some(adjustments) = &mut self.adjustments {
            adjustments.count(token);
        }
        let generated = self.tokens.len() - self.num_prompt_tokens;
        if let (Some(search), Some(texts)) = (&mut self.stop_search, &self.request.stop_texts) {
            // Whatever `min_tokens` says: that rules tokens out, and a text is found only once its tokens are there.
            self.is_stopped_by_text = search.push(texts, token);
        }
        if self.is_stopped_by_text || self.request.stop_tokens.contains(&token) {
            Some(FinishReason::Stop)
        } else if generated == self.request.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Hands out what was generated.
    pub(super) fn into_output(mut self, reason: FinishReason) -> Output {
        let tokens = self.tokens.split_off(self.num_prompt_tokens);
        let stop_texts = self.request.stop_texts.filter(|_| self.is_stopped_by_text);
        // The token that completes a stop text is cut where that begins, and one that completes a constraint is a part of its text.
        let may_be_one = reason == FinishReason::Stop && stop_texts.is_none();
        let stop_token = tokens.last().copied().filter(|token| may_be_one && self.request.stop_tokens.contains(token));
        Output { id: self.request.id, tokens, logprobs: self.logprobs, reason, stop_token, stop_texts, error: None }
    }

    /// The output of a request whose next token cannot be chosen; it keeps those that it has.
    pub(super) fn into_failed_output(self, error: RequestError) -> Output {
        Output { error: Some(error), ..self.into_output(FinishReason::Error) }
    }
}

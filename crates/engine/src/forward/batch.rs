//! Input of one forward pass, built once a step and used by every layer.
//!
//! Plain host memory in the layout that variable-length paged attention expects; buffers are reused from step to step.
//! On a CPU, operations read the slices as they are; a device mirrors them with one upload a step. This file knows
//! nothing of tensors.

use std::sync::Arc;

use crate::forward::replay::ReplaySize;
use crate::schedule::limits::EngineLimits;
use flashjob_cpu::{LogitAdjustments, LogprobsRow, TokenChoice};

/// A token id that is this or more is no id: what is above it is a place among the tokens that the step before chose, which only the
/// device knows yet.
pub const CHOSEN_BEFORE: u32 = 1 << 31;

/// Rows of a chunk whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsRows {
    /// None: tokens to come are known already.
    None,
    /// That of its last token.
    Last,
    /// Logits of each token.
    All,
}

/// Rows of a step are tokens; its sequences are contiguous runs of rows.
#[derive(Debug, Default)]
pub struct ForwardBatch {
    token_ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    cumulative_queries: Vec<u32>,
    cumulative_keys: Vec<u32>,
    block_table: Vec<u32>,
    max_blocks: usize,
    logit_rows: Vec<u32>,
    choices: Vec<TokenChoice>,
    adjustments: LogitAdjustments,
    logprobs: Vec<LogprobsRow>,
    block_size: usize,
    longest_queries: usize,
    decodes: usize,
    /// Keys of the longest of the first `decodes` sequences, and of the longest of the others.
    longest_keys: [usize; 2],
    replay: Option<ReplaySize>,
}

impl ForwardBatch {
    /// Buffers for steps within `limits`.
    pub fn with_capacity(limits: &EngineLimits) -> Self {
        let (tokens, sequences) = (limits.max_num_batched_tokens, limits.max_num_seqs);
        // Not whole tables: long ones are rare, and the buffer keeps what it once grew to.
        let blocks = limits.max_blocks_per_seq().min(16);
        Self {
            token_ids: Vec::with_capacity(tokens),
            positions: Vec::with_capacity(tokens),
            slots: Vec::with_capacity(tokens),
            cumulative_queries: Vec::with_capacity(sequences + 1),
            cumulative_keys: Vec::with_capacity(sequences + 1),
            block_table: Vec::with_capacity(sequences.saturating_mul(blocks)),
            logit_rows: Vec::with_capacity(sequences),
            choices: Vec::with_capacity(sequences),
            block_size: limits.block_size,
            ..Self::default()
        }
    }

    /// The step behind `step`, to be filled in.
    ///
    /// # Panics
    /// While a rank holds it.
    pub fn lent(step: &mut Arc<ForwardBatch>) -> &mut ForwardBatch {
        Arc::get_mut(step).expect("ranks have put a step down when they are done")
    }

    /// Empties it for a batch whose longest sequence has `longest` tokens with this step.
    pub fn begin(&mut self, longest: usize) {
        self.token_ids.clear();
        self.positions.clear();
        self.slots.clear();
        self.cumulative_queries.clear();
        self.cumulative_keys.clear();
        self.cumulative_queries.push(0);
        self.cumulative_keys.push(0);
        self.block_table.clear();
        self.logit_rows.clear();
        self.choices.clear();
        self.adjustments.clear();
        self.logprobs.clear();
        self.max_blocks = longest.div_ceil(self.block_size);
        (self.longest_queries, self.decodes, self.longest_keys, self.replay) = (0, 0, [0; 2], None);
    }

    /// Adds tokens of one sequence, the first of them at position `start`; `blocks` are those of the sequence in the order of its
    /// tokens, and hold all of these.
    pub fn push(&mut self, token_ids: &[u32], start: usize, blocks: impl IntoIterator<Item = u32>, wanted: LogitsRows) {
        let (first_row, first_block) = (self.token_ids.len(), self.block_table.len());
        let end = start + token_ids.len();
        self.token_ids.extend_from_slice(token_ids);
        self.positions.extend(start as u32..end as u32);
        self.block_table.extend(blocks.into_iter().take(self.max_blocks));
        // Slots, not blocks: kernels write keys and values of a row without knowing whose row it is.
        let (table, block_size) = (&self.block_table[first_block..], self.block_size);
        self.slots.extend(
            (start..end)
                .map(|position| table[position / block_size] * block_size as u32 + (position % block_size) as u32),
        );
        self.cumulative_queries.push(self.token_ids.len() as u32);
        self.cumulative_keys.push(self.cumulative_keys.last().copied().unwrap_or(0) + end as u32);
        // Padded to a rectangle, as kernels index it by sequence. Block 0 exists always; nothing reads the padding.
        self.block_table.resize(self.sequences() * self.max_blocks, 0);
        let rows = match wanted {
            LogitsRows::None => self.token_ids.len()..self.token_ids.len(),
            LogitsRows::Last => self.token_ids.len() - 1..self.token_ids.len(),
            LogitsRows::All => first_row..self.token_ids.len(),
        };
        self.logit_rows.extend(rows.map(|row| row as u32));
        self.longest_queries = self.longest_queries.max(token_ids.len());
        // A prompt of one token, or the last of a longer one, is computed like a sequence that decodes.
        let decodes = token_ids.len() == 1 && self.decodes + 1 == self.sequences();
        self.decodes += usize::from(decodes);
        let longest = &mut self.longest_keys[usize::from(!decodes)];
        *longest = end.max(*longest);
    }

    /// As [`Self::push`] of one token at `position`, the one at this `place` among those that the step before chose.
    pub fn push_chosen(
        &mut self,
        place: u32,
        position: usize,
        blocks: impl IntoIterator<Item = u32>,
        wanted: LogitsRows,
    ) {
        self.push(&[CHOSEN_BEFORE | place], position, blocks, wanted);
    }

    /// Has the token after those that were pushed last chosen so, of which [`LogitsRows::Last`] was wanted.
    pub fn choose(&mut self, choice: TokenChoice) {
        self.choices.push(choice);
    }

    /// The row of the token that was last to be chosen, and the changes of all rows, to which its own may be added.
    pub fn adjust(&mut self) -> (usize, &mut LogitAdjustments) {
        (self.choices.len() - 1, &mut self.adjustments)
    }

    /// Wants log-probabilities of the token that was last to be chosen, and of the `count` likeliest ones.
    pub fn want_logprobs(&mut self, count: usize) {
        let row = self.choices.len() as u32 - 1;
        self.logprobs.push(LogprobsRow { row, count: count as u32 });
    }

    /// Wants the logits of these rows, ascending ones, and of no others.
    pub fn set_logit_rows(&mut self, rows: &[u32]) {
        self.logit_rows.clear();
        self.logit_rows.extend_from_slice(rows);
    }

    /// Fills a step in which every sequence has one token up to `size`, which must be as wide, with rows that nobody
    /// reads: from now on nothing about it but its size decides what is launched.
    pub fn fill_up(&mut self, size: ReplaySize, spare_block: u32) {
        debug_assert!(self.longest_queries == 1 && self.max_blocks == size.max_blocks, "a step of another kind");
        for sequence in self.sequences()..size.sequences {
            self.logit_rows.push(self.token_ids.len() as u32);
            self.token_ids.push(0);
            self.positions.push(0);
            self.slots.push(spare_block * self.block_size as u32);
            self.cumulative_queries.push(self.token_ids.len() as u32);
            self.cumulative_keys.push(self.cumulative_keys.last().copied().unwrap_or(0) + 1);
            self.block_table.push(spare_block);
            self.block_table.resize((sequence + 1) * self.max_blocks, 0);
        }
        // The longest that the recorded launch must cope with, not that of this step: a grid is fixed when it is recorded.
        self.longest_keys = [size.max_blocks * self.block_size, 0];
        self.decodes = self.sequences();
        self.replay = Some(size);
    }

    /// Its size, where what is launched depends on nothing else.
    pub fn replay(&self) -> Option<ReplaySize> {
        self.replay
    }

    /// Tokens of the sequence that has most in this step; those that a replayed step is good for.
    pub fn longest_queries(&self) -> usize {
        self.longest_queries
    }

    /// Sequences at the beginning of the step that have one token each: those that decode, which come first.
    pub fn decodes(&self) -> usize {
        self.decodes
    }

    /// Keys of the longest of [`Self::decodes`], this step's included; those that a replayed step is good for.
    pub fn longest_decode_keys(&self) -> usize {
        self.longest_keys[0]
    }

    /// Keys of the longest of the sequences behind [`Self::decodes`], this step's included.
    pub fn longest_prefill_keys(&self) -> usize {
        self.longest_keys[1]
    }

    /// Tokens that a block of the cache holds.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Tokens of the step: rows of every activation.
    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Sequences of the step: contiguous runs of rows.
    pub fn sequences(&self) -> usize {
        self.cumulative_queries.len() - 1
    }

    /// `[tokens]`; see [`CHOSEN_BEFORE`].
    pub fn token_ids(&self) -> &[u32] {
        &self.token_ids
    }

    /// `[tokens]`, each within its sequence.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// `[tokens]`: where each row's keys and values go, block × block_tokens + offset.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// `[sequences + 1]`: rows before each sequence's first.
    pub fn cumulative_queries(&self) -> &[u32] {
        &self.cumulative_queries
    }

    /// `[sequences + 1]`: keys of all sequences before each, this step's included.
    pub fn cumulative_keys(&self) -> &[u32] {
        &self.cumulative_keys
    }

    /// `[sequences, max_blocks]`, padded with 0.
    pub fn block_table(&self) -> &[u32] {
        &self.block_table
    }

    /// Width of the block table.
    pub fn max_blocks(&self) -> usize {
        self.max_blocks
    }

    /// Rows whose logits are wanted, ascending.
    pub fn logit_rows(&self) -> &[u32] {
        &self.logit_rows
    }

    /// How tokens are chosen from the first of those rows; empty on nodes that another one leads, which choose none.
    pub fn choices(&self) -> &[TokenChoice] {
        &self.choices
    }

    /// Rows of them whose log-probabilities are wanted, ascending.
    pub fn logprobs(&self) -> &[LogprobsRow] {
        &self.logprobs
    }

    /// Changes of the logits of those rows before that.
    pub fn adjustments(&self) -> &LogitAdjustments {
        &self.adjustments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: EngineLimits = EngineLimits {
        max_num_seqs: 2,
        max_num_batched_tokens: 8,
        max_model_len: 8,
        block_size: 4,
        num_blocks: 8,
        num_spare_blocks: 1,
        vocab_size: 10,
    };

    #[test]
    fn a_step_says_where_each_token_is_and_what_it_sees() {
        let mut step = ForwardBatch::with_capacity(&LIMITS);
        for _ in 0..2 {
            step.begin(6);
            step.push(&[7], 5, [0, 1], LogitsRows::Last);
            step.push(&[1, 2, 3], 0, [2], LogitsRows::None);
            assert_eq!(step.token_ids(), [7, 1, 2, 3]);
            assert_eq!(step.positions(), [5, 0, 1, 2]);
            assert_eq!(step.slots(), [5, 8, 9, 10]);
            assert_eq!(step.cumulative_queries(), [0, 1, 4]);
            assert_eq!(step.cumulative_keys(), [0, 6, 9]);
            assert_eq!((step.block_table(), step.max_blocks()), (&[0, 1, 2, 0][..], 2));
            assert_eq!(step.logit_rows(), [0]);
            assert_eq!((step.decodes(), step.longest_decode_keys(), step.longest_prefill_keys()), (1, 6, 3));
        }
        step.begin(3);
        step.push(&[1, 2, 3], 0, [2], LogitsRows::All);
        assert_eq!((step.logit_rows(), step.block_table()), (&[0, 1, 2][..], &[2][..]));
        assert_eq!((step.longest_queries(), step.decodes(), step.replay()), (3, 0, None));
    }

    #[test]
    fn a_step_is_filled_up_with_sequences_of_one_token_in_the_spare_block() {
        let mut step = ForwardBatch::with_capacity(&LIMITS);
        let size = ReplaySize { sequences: 3, max_blocks: 4 };
        step.begin(size.max_blocks * 4);
        step.push(&[7], 5, [0, 1], LogitsRows::Last);
        step.fill_up(size, 8);
        assert_eq!((step.token_ids(), step.positions()), (&[7, 0, 0][..], &[5, 0, 0][..]));
        assert_eq!(step.slots(), [5, 32, 32]);
        assert_eq!((step.cumulative_queries(), step.cumulative_keys()), (&[0, 1, 2, 3][..], &[0, 6, 7, 8][..]));
        assert_eq!(step.block_table(), [0, 1, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!((step.logit_rows(), step.replay()), (&[0, 1, 2][..], Some(size)));
        assert_eq!((step.longest_queries(), step.decodes(), step.longest_decode_keys()), (1, 3, 16));
    }
}

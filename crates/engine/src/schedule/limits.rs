//! Size of the largest step and of the cache, in one place for scheduler, buffers, links and recorded graphs.

/// Bounds of every step of an engine.
///
/// The KV cache may turn out smaller than what was planned, and `max_model_len` with it: buffers are then larger than any step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Sequences that run at a time, at least 1.
    pub max_num_seqs: usize,
    /// Tokens that one step computes, at least 1.
    pub max_num_batched_tokens: usize,
    /// Tokens of the longest sequence, prompt and generated ones together.
    pub max_model_len: usize,
    /// Tokens that a block of the KV cache holds.
    pub block_size: usize,
    /// Blocks of the KV cache that sequences share.
    pub num_blocks: usize,
    /// Blocks behind those, which no sequence gets: padding rows of CUDA graphs write to them.
    pub num_spare_blocks: usize,
    /// Rows of the embedding; token ids are below it.
    pub vocab_size: usize,
}

impl EngineLimits {
    /// Rows of logits of a step at most: one for each sequence that is in it.
    pub fn max_num_logits(&self) -> usize {
        self.max_num_seqs.min(self.max_num_batched_tokens)
    }

    /// Blocks of the longest sequence: the width of the widest block table.
    pub fn max_blocks_per_seq(&self) -> usize {
        self.max_model_len.div_ceil(self.block_size)
    }

    /// Limits of steps whose rows are rounded up to multiples of `rows`, as far as numbers go.
    #[must_use]
    pub fn rounded_up(self, rows: usize) -> Self {
        let rounded = |count: usize| count.checked_next_multiple_of(rows).unwrap_or(usize::MAX);
        let (max_num_seqs, max_num_batched_tokens) = (rounded(self.max_num_seqs), rounded(self.max_num_batched_tokens));
        Self { max_num_seqs, max_num_batched_tokens, ..self }
    }

    /// Blocks that memory is allocated for.
    pub fn num_allocated_blocks(&self) -> usize {
        self.num_blocks + self.num_spare_blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_no_more_logits_than_tokens_and_a_table_holds_the_longest_sequence() {
        let limits = EngineLimits {
            max_num_seqs: 256,
            max_num_batched_tokens: 64,
            max_model_len: 100,
            block_size: 32,
            num_blocks: 10,
            num_spare_blocks: 1,
            vocab_size: 1000,
        };
        assert_eq!((limits.max_num_logits(), limits.max_blocks_per_seq(), limits.num_allocated_blocks()), (64, 4, 11));
    }
}

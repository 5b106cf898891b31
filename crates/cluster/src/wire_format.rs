//! A step as words that go to another node, and back.
//!
//! Only what cannot be derived travels: token ids, how long each sequence is, its blocks, and whose logits are wanted. Whoever
//! reads them trusts nothing: a step that was read is one that this engine can compute.

use flashjob_engine::{EngineLimits, ForwardBatch, LogitsRows, ReplaySize};

/// Sequences, width of the block table, tokens, rows with logits, whether it is replayed.
const HEADER: usize = 5;

/// Numbers of the longest step within `limits`.
pub fn max_len(limits: &EngineLimits) -> usize {
    let table = limits.max_num_seqs.saturating_mul(limits.max_blocks_per_seq());
    let lists = [2 * limits.max_num_seqs, table, limits.max_num_batched_tokens, limits.max_num_logits()];
    lists.iter().fold(HEADER, |sum, list| sum.saturating_add(*list))
}

/// Appends `step` to `encoded`.
pub fn encode(step: &ForwardBatch, encoded: &mut Vec<u32>) {
    let counts = [step.sequences(), step.max_blocks(), step.tokens(), step.logit_rows().len()];
    encoded.extend(counts.map(|count| count as u32));
    encoded.push(u32::from(step.replay().is_some()));
    for cumulative in [step.cumulative_queries(), step.cumulative_keys()] {
        encoded.extend(cumulative.windows(2).map(|pair| pair[1] - pair[0]));
    }
    encoded.extend_from_slice(step.block_table());
    encoded.extend_from_slice(step.token_ids());
    encoded.extend_from_slice(step.logit_rows());
}

/// Makes `step` the one that `encoded` are, if that is one within `limits`; it must not be computed otherwise.
///
/// # Errors
/// A clause that says what is wrong with it.
pub fn decode(encoded: &[u32], limits: &EngineLimits, step: &mut ForwardBatch) -> Result<(), String> {
    let lists = Lists::of(encoded, limits, step.block_size())?;
    lists.check_numbers(limits)?;
    lists.check_lengths(limits.max_model_len.min(lists.max_blocks * step.block_size()))?;
    // Derived lists are built here once more, and not taken from the link: they agree with each other by construction.
    step.begin(lists.max_blocks * step.block_size());
    let mut rest = lists.token_ids;
    for ((&queries, &keys), blocks) in lists.queries.iter().zip(lists.keys).zip(lists.tables()) {
        let token_ids;
        (token_ids, rest) = rest.split_at(queries as usize);
        step.push(token_ids, (keys - queries) as usize, blocks.iter().copied(), LogitsRows::None);
    }
    step.set_logit_rows(lists.logit_rows);
    // A replayed graph was recorded for one token a sequence and for a width: both must be those of its size.
    if lists.replays {
        if step.longest_queries() != 1 {
            return Err("only steps of decoding are replayed".to_owned());
        }
        step.fill_up(ReplaySize { sequences: step.sequences(), max_blocks: lists.max_blocks }, 0);
    }
    Ok(())
}

/// The lists of a step that was received.
struct Lists<'a> {
    max_blocks: usize,
    replays: bool,
    /// Tokens of each sequence that are computed.
    queries: &'a [u32],
    /// Tokens of each sequence, with those that are computed.
    keys: &'a [u32],
    /// `[sequences, max_blocks]`.
    block_table: &'a [u32],
    token_ids: &'a [u32],
    logit_rows: &'a [u32],
}

impl<'a> Lists<'a> {
    /// Lists whose lengths are within `limits`.
    fn of(encoded: &'a [u32], limits: &EngineLimits, block_size: usize) -> Result<Self, String> {
        let Some((&[sequences, max_blocks, tokens, rows, replays], rest)) = encoded.split_first_chunk::<HEADER>()
        else {
            return Err(format!("{} words are no step", encoded.len()));
        };
        let [sequences, max_blocks, tokens, rows] = [sequences, max_blocks, tokens, rows].map(|count| count as usize);
        let most_blocks = limits.max_model_len.div_ceil(block_size);
        for (what, count, least, most) in [
            ("sequences", sequences, 1, limits.max_num_seqs),
            ("blocks of a sequence", max_blocks, 1, most_blocks),
            ("tokens", tokens, sequences, limits.max_num_batched_tokens),
            ("rows of logits", rows, 0, limits.max_num_logits().min(tokens)),
        ] {
            if !(least..=most).contains(&count) {
                return Err(format!("{count} {what} are not from {least} to {most}"));
            }
        }
        // No product overflows: each factor was compared with its limit above.
        let all = 2 * sequences + sequences * max_blocks + tokens + rows;
        if rest.len() != all || replays > 1 {
            return Err(format!("{} words are not the {all} that it should have", rest.len()));
        }
        let (queries, rest) = rest.split_at(sequences);
        let (keys, rest) = rest.split_at(sequences);
        let (block_table, rest) = rest.split_at(sequences * max_blocks);
        let (token_ids, logit_rows) = rest.split_at(tokens);
        Ok(Self { max_blocks, replays: replays == 1, queries, keys, block_table, token_ids, logit_rows })
    }

    /// Refuses tokens, blocks and rows that there are not.
    fn check_numbers(&self, limits: &EngineLimits) -> Result<(), String> {
        if let Some(id) = self.token_ids.iter().find(|&&id| id as usize >= limits.vocab_size) {
            return Err(format!("there is no token {id} among {}", limits.vocab_size));
        }
        if let Some(block) = self.block_table.iter().find(|&&block| block as usize >= limits.num_allocated_blocks()) {
            return Err(format!("there is no block {block} among {}", limits.num_allocated_blocks()));
        }
        // Rows are gathered by index on every rank: one out of range would read another sequence, or beyond the buffer.
        let (tokens, ascending) = (self.token_ids.len(), self.logit_rows.is_sorted_by(|a, b| a < b));
        if !ascending || self.logit_rows.last().is_some_and(|&row| row as usize >= tokens) {
            return Err(format!("rows of logits are not rows of {tokens} tokens in their order"));
        }
        Ok(())
    }

    /// Refuses sequences of more than `longest` tokens, and those that do not add up to the step's tokens.
    fn check_lengths(&self, longest: usize) -> Result<(), String> {
        let tokens = self.token_ids.len();
        let (mut all_queries, mut all_keys) = (0, 0u32);
        for (&queries, &keys) in self.queries.iter().zip(self.keys) {
            // As many as there are tokens in all, so that no sum is too large.
            if queries == 0 || queries > keys || queries as usize > tokens || keys as usize > longest {
                return Err(format!("a sequence has {queries} new tokens of {keys}, and {longest} at most"));
            }
            all_queries += queries as usize;
            all_keys = all_keys.checked_add(keys).ok_or_else(|| "more keys than can be counted".to_owned())?;
        }
        if all_queries != tokens {
            return Err(format!("its sequences have not got the {tokens} tokens that it has"));
        }
        Ok(())
    }

    /// Blocks of each sequence.
    fn tables(&self) -> impl Iterator<Item = &'a [u32]> {
        self.block_table.chunks_exact(self.max_blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: EngineLimits = EngineLimits {
        max_num_seqs: 4,
        max_num_batched_tokens: 8,
        max_model_len: 16,
        block_size: 4,
        num_blocks: 8,
        num_spare_blocks: 1,
        vocab_size: 20,
    };

    fn empty() -> ForwardBatch {
        ForwardBatch::with_capacity(&LIMITS)
    }

    /// A sequence that decodes, one that prefills.
    fn step() -> ForwardBatch {
        let mut step = empty();
        step.begin(6);
        step.push(&[7], 5, [0, 1], LogitsRows::Last);
        step.push(&[1, 2, 3], 0, [2], LogitsRows::None);
        step
    }

    fn replayed() -> ForwardBatch {
        let mut step = empty();
        let size = ReplaySize { sequences: 3, max_blocks: 4 };
        step.begin(size.max_blocks * 4);
        step.push(&[7], 5, [0, 1], LogitsRows::Last);
        step.fill_up(size, 8);
        step
    }

    fn encoded(step: &ForwardBatch) -> Vec<u32> {
        let mut encoded = Vec::new();
        encode(step, &mut encoded);
        encoded
    }

    #[test]
    fn what_is_written_is_read() {
        let mut read = empty();
        for step in [step(), replayed(), step()] {
            let encoded = encoded(&step);
            assert!(encoded.len() <= max_len(&LIMITS), "{}", encoded.len());
            decode(&encoded, &LIMITS, &mut read).unwrap();
            assert_eq!(format!("{read:?}"), format!("{step:?}"));
        }
    }

    /// Every word of a step, replaced by others, in turn: it is refused, or a step that is within its bounds.
    #[test]
    fn no_word_is_trusted() {
        for step in [step(), replayed()] {
            let right = encoded(&step);
            let mut refused = 0;
            for index in 0..right.len() {
                for value in [0, 1, 2, 3, 5, 8, 9, 16, 17, 20, 255, 1 << 16, i32::MAX as u32, u32::MAX - 1, u32::MAX] {
                    let mut encoded = right.clone();
                    encoded[index] = value;
                    let mut read = empty();
                    let Ok(()) = decode(&encoded, &LIMITS, &mut read) else {
                        refused += 1;
                        continue;
                    };
                    assert!(read.token_ids().iter().all(|&id| id < 20));
                    assert!(read.slots().iter().all(|&slot| slot < 9 * 4));
                    assert!(read.positions().iter().all(|&position| position < 16));
                    assert!(read.block_table().len() == read.sequences() * read.max_blocks());
                    assert!(read.logit_rows().iter().all(|&row| (row as usize) < read.tokens()));
                    assert_eq!(read.positions().len(), read.tokens());
                }
            }
            assert!(refused > right.len() * 7, "{refused} of {}", right.len() * 15);
            for length in 0..right.len() {
                assert!(decode(&right[..length], &LIMITS, &mut empty()).is_err(), "the first {length} words");
            }
            assert!(decode(&[right.as_slice(), &[0]].concat(), &LIMITS, &mut empty()).is_err());
        }
    }
}

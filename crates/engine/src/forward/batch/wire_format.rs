//! A step as words that go to another machine, and back.
//!
//! Only what cannot be derived travels: token ids, how long each sequence is, its blocks, and whose logits are wanted. Whoever
//! reads them trusts nothing: a step that was read is one that this engine can compute.

use super::ForwardBatch;
use crate::forward::replay::ReplaySize;
use crate::schedule::limits::EngineLimits;

/// Sequences, width of the block table, tokens, rows with logits, whether it is replayed.
const HEADER: usize = 5;

/// Numbers of the longest step within `limits`.
pub fn max_len(limits: &EngineLimits) -> usize {
    let table = limits.max_num_seqs.saturating_mul(limits.max_blocks_per_seq());
    let lists = [2 * limits.max_num_seqs, table, limits.max_num_batched_tokens, limits.max_num_logits()];
    lists.iter().fold(HEADER, |sum, list| sum.saturating_add(*list))
}

impl ForwardBatch {
    /// Appends the step to `encoded`.
    pub fn encode(&self, encoded: &mut Vec<u32>) {
        let counts = [self.sequences(), self.max_blocks, self.tokens(), self.logit_rows.len()];
        encoded.extend(counts.map(|count| count as u32));
        encoded.push(u32::from(self.replay.is_some()));
        for cumulative in [&self.cumulative_queries, &self.cumulative_keys] {
            encoded.extend(cumulative.windows(2).map(|pair| pair[1] - pair[0]));
        }
        encoded.extend_from_slice(&self.block_table);
        encoded.extend_from_slice(&self.token_ids);
        encoded.extend_from_slice(&self.logit_rows);
    }

    /// Becomes the step that `encoded` are, if it is one within `limits`.
    ///
    /// # Errors
    /// What is wrong with it. The step is then none that may be computed.
    pub fn decode(&mut self, encoded: &[u32], limits: &EngineLimits) -> Result<(), String> {
        let Some((&[sequences, max_blocks, tokens, rows, replays], rest)) = encoded.split_first_chunk::<HEADER>()
        else {
            return Err(format!("{} words are no step", encoded.len()));
        };
        let [sequences, max_blocks, tokens, rows] = [sequences, max_blocks, tokens, rows].map(|count| count as usize);
        let most_blocks = limits.max_model_len.div_ceil(self.block_size);
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
        let (table, rest) = rest.split_at(sequences * max_blocks);
        let (token_ids, logit_rows) = rest.split_at(tokens);
        if let Some(id) = token_ids.iter().find(|&&id| id as usize >= limits.vocab_size) {
            return Err(format!("there is no token {id} among {}", limits.vocab_size));
        }
        if let Some(block) = table.iter().find(|&&block| block as usize >= limits.num_allocated_blocks()) {
            return Err(format!("there is no block {block} among {}", limits.num_allocated_blocks()));
        }
        // Rows are gathered by index on every rank: one out of range would read another sequence, or beyond the buffer.
        let ascending = logit_rows.is_sorted_by(|a, b| a < b);
        if !ascending || logit_rows.last().is_some_and(|&row| row as usize >= tokens) {
            return Err(format!("rows of logits are not rows of {tokens} tokens in their order"));
        }
        let longest = limits.max_model_len.min(max_blocks * self.block_size);
        // Derived lists are built here once more, and not taken from the link: they agree with each other by construction.
        self.begin(max_blocks * self.block_size);
        let block_size = self.block_size as u32;
        for ((&queries, &keys), blocks) in queries.iter().zip(keys).zip(table.chunks_exact(max_blocks)) {
            // As many as there are tokens in all, so that no sum is too large.
            if queries == 0 || queries > keys || queries as usize > tokens || keys as usize > longest {
                return Err(format!("a sequence has {queries} new tokens of {keys}, and {longest} at most"));
            }
            for position in keys - queries..keys {
                self.positions.push(position);
                self.slots.push(blocks[(position / block_size) as usize] * block_size + position % block_size);
            }
            if self.positions.len() > tokens {
                break;
            }
            self.cumulative_queries.push(self.positions.len() as u32);
            let Some(sum) = self.cumulative_keys.last().and_then(|last| last.checked_add(keys)) else {
                return Err("more keys than can be counted".to_owned());
            };
            self.cumulative_keys.push(sum);
            self.longest_queries = self.longest_queries.max(queries as usize);
            self.longest_keys = self.longest_keys.max(keys as usize);
        }
        if self.positions.len() != tokens {
            return Err(format!("its sequences have not got the {tokens} tokens that it has"));
        }
        self.token_ids.extend_from_slice(token_ids);
        self.block_table.extend_from_slice(table);
        self.logit_rows.extend_from_slice(logit_rows);
        // A replayed graph was recorded for one token a sequence and for a width: both must be those of its size.
        if replays == 1 {
            if self.longest_queries != 1 {
                return Err("only steps of decoding are replayed".to_owned());
            }
            self.longest_keys = max_blocks * self.block_size;
            self.replay = Some(ReplaySize { sequences, max_blocks });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BlockTable, LogitsRows};
    use super::*;
    use crate::schedule::blocks::BlockPool;

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
        let mut pool = BlockPool::new(8, 4);
        let (mut decoding, mut prefilling) = (BlockTable::default(), BlockTable::default());
        pool.grow(&mut decoding, 6).unwrap();
        pool.grow(&mut prefilling, 3).unwrap();
        let mut step = empty();
        step.begin(6);
        step.push(&[7], 5, &decoding, LogitsRows::Last);
        step.push(&[1, 2, 3], 0, &prefilling, LogitsRows::None);
        step
    }

    fn replayed() -> ForwardBatch {
        let mut pool = BlockPool::new(8, 4);
        let mut table = BlockTable::default();
        pool.grow(&mut table, 6).unwrap();
        let mut step = empty();
        let size = ReplaySize { sequences: 3, max_blocks: 4 };
        step.begin(size.max_blocks * 4);
        step.push(&[7], 5, &table, LogitsRows::Last);
        step.fill_up(size, 8);
        step
    }

    fn encoded(step: &ForwardBatch) -> Vec<u32> {
        let mut encoded = Vec::new();
        step.encode(&mut encoded);
        encoded
    }

    #[test]
    fn what_is_written_is_read() {
        let mut read = empty();
        for step in [step(), replayed(), step()] {
            let encoded = encoded(&step);
            assert!(encoded.len() <= max_len(&LIMITS), "{}", encoded.len());
            read.decode(&encoded, &LIMITS).unwrap();
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
                    let Ok(()) = read.decode(&encoded, &LIMITS) else {
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
                assert!(empty().decode(&right[..length], &LIMITS).is_err(), "the first {length} words");
            }
            assert!(empty().decode(&[right.as_slice(), &[0]].concat(), &LIMITS).is_err());
        }
    }
}

//! How much memory computing takes besides weights and cache: found by computing the largest step once.
//!
//! Libraries allocate when they are first used, and drivers load kernels when they are first launched; nobody tells beforehand how
//! much. All sequences of that step share the blocks of one: its keys and values mean nothing.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::cluster::executor::Ranks;
use crate::cluster::links::Links;
use crate::error::Error;
use crate::forward::batch::wire_format::StepBounds;
use crate::forward::batch::{Step, Wanted};
use crate::forward::decoder::Extent;
use crate::schedule::blocks::{BlockPool, BlockTable};

/// The largest step, and a step of decoding as many sequences.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    sequences: usize,
    /// Tokens of each.
    length: usize,
    block_tokens: usize,
}

impl Profile {
    /// For an engine of this extent, with so many sequences at a time.
    pub fn new(extent: Extent, max_num_seqs: usize) -> Self {
        let sequences = max_num_seqs.min(extent.most.tokens).max(1);
        let length = (extent.most.tokens / sequences).clamp(1, extent.max_model_len);
        Self { sequences, length, block_tokens: extent.block_tokens }
    }

    /// Blocks of the cache that it computes with.
    pub fn blocks(&self) -> usize {
        self.length.div_ceil(self.block_tokens)
    }

    /// Computes both steps; where another machine leads, those that it computes.
    ///
    /// # Errors
    /// Of computing.
    pub fn run(
        &self,
        ranks: &mut Ranks,
        step: &mut Arc<Step>,
        bounds: StepBounds,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        if let Some(Links::Follows(_)) = ranks.world().links {
            return (0..2).try_for_each(|_| ranks.follow(step, &bounds, cancel));
        }
        let mut table = BlockTable::default();
        // There are as many blocks as it asks for.
        let _grown = BlockPool::new(self.blocks() as u32, self.block_tokens).grow(&mut table, self.length);
        let tokens = vec![0; self.length];
        for (tokens, start) in [(&tokens[..], 0), (&tokens[..1], self.length - 1)] {
            let largest = Step::lent(step);
            largest.begin(self.length);
            for _ in 0..self.sequences {
                largest.push(tokens, start, &table, Wanted::Last);
            }
            ranks.forward(step, cancel, |_logits| Ok(()))?;
        }
        Ok(())
    }
}

//! Tensor parallelism (Megatron-LM): collectives between ranks that share one model.
//!
//! Column-parallel products need no word; row-parallel ones and the embedding are summed over ranks, logits put side by
//! side (Shoeybi et al., 2019). This file knows nothing of layers.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use flashjob_model::Shard;

/// All ranks of a model, as the executor sees them.
pub trait Group: Send + Sync {
    /// Every rank is about to compute the same step.
    fn begin(&self);

    /// Marks a rank of this node, by its index, as failed; pending collectives of the others return an error.
    fn mark_failed(&self, index: usize);

    /// Index of the first rank of this node that failed.
    fn failed_rank(&self) -> Option<usize>;
}

/// Places of the ranks here among all ranks.
pub struct Connected {
    /// By rank, those here.
    pub communicators: Vec<Box<dyn Communicator>>,
    /// All ranks; `None` for a single one.
    pub group: Option<Arc<dyn Group>>,
}

/// One rank's view of all. Every rank makes the same calls in the same order.
pub trait Communicator: Send {
    /// Rank and world size.
    fn shard(&self) -> Shard;

    /// Overwrites `tensor` with its sum over all ranks.
    fn all_reduce(&self, tensor: &Tensor) -> Result<()>;

    /// Puts the rows of all ranks' `part`s, `[rows, width]` each, side by side in order of rank: into `whole`,
    /// `[rows, sum of widths]`, which only rank 0 has.
    fn gather(&self, part: &Tensor, whole: Option<&Tensor>) -> Result<()>;
}

/// Communicator of a single rank: every collective is empty.
#[derive(Clone, Copy, Debug)]
pub struct Solo;

impl Communicator for Solo {
    fn shard(&self) -> Shard {
        Shard::WHOLE
    }

    fn all_reduce(&self, _tensor: &Tensor) -> Result<()> {
        Ok(())
    }

    fn gather(&self, _part: &Tensor, _whole: Option<&Tensor>) -> Result<()> {
        Ok(())
    }
}

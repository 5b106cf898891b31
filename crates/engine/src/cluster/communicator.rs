//! The door between ranks that share one model.
//!
//! Column-parallel products need no word; row-parallel ones and the embedding are summed over ranks, logits put side by
//! side (Shoeybi et al., "Megatron-LM", 2019). This file knows nothing of layers.

use candle_core::{Result, Tensor};

use flashjob_model::Shard;

/// Where the ranks of one model meet, as whoever gives them work sees it.
pub trait Group: Send + Sync {
    /// Every rank is about to compute the same step.
    fn begin(&self);

    /// The rank at this index of those here will not come to this meeting: nobody waits for it.
    fn give_up(&self, index: usize);

    /// The index of the first rank here that gave up.
    fn gave_up(&self) -> Option<usize>;
}

/// One rank's view of all. Every rank makes the same calls in the same order.
pub trait Communicator: Send {
    /// Which rank this is, and of how many.
    fn shard(&self) -> Shard;

    /// Overwrites `tensor` with its sum over all ranks.
    fn all_reduce(&self, tensor: &Tensor) -> Result<()>;

    /// Puts the rows of all ranks' `part`s, `[rows, width]` each, side by side in order of rank: into `whole`,
    /// `[rows, sum of widths]`, which only rank 0 has.
    fn gather(&self, part: &Tensor, whole: Option<&Tensor>) -> Result<()>;
}

/// The only rank.
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

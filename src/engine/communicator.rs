//! The door between ranks that share one model.
//!
//! Column-parallel products need no word; row-parallel ones and the embedding are summed over ranks, logits put side by
//! side (Shoeybi et al., "Megatron-LM", 2019). This file knows nothing of layers.

mod shared_memory;

use candle_core::{Result, Tensor};

use crate::model::Shard;

pub use shared_memory::{Group, Member};

/// One rank's view of all. Every rank makes the same calls in the same order.
pub trait Communicator: Send {
    /// Which rank this is, and of how many.
    fn shard(&self) -> Shard;

    /// Overwrites `tensor` with its sum over all ranks.
    fn all_reduce(&self, tensor: &Tensor) -> Result<()>;

    /// The last dimension of all ranks' `part`s, in order of rank; only rank 0 gets it.
    fn gather(&self, part: &Tensor) -> Result<Option<Tensor>>;
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

    fn gather(&self, part: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(part.clone()))
    }
}

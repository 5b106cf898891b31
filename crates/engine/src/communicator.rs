//! The door between ranks that share one model.
//!
//! Column-parallel products need no word; row-parallel ones and the embedding are summed over ranks, logits put side by
//! side (Shoeybi et al., "Megatron-LM", 2019). This file knows nothing of layers.

#[cfg(feature = "cuda")]
mod nccl;
mod shared_memory;

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::Error;
use super::processor::Processor;
use super::world::World;
use flashjob_model::Shard;

use shared_memory::{Member, SharedMemory};

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

/// The places of the ranks here, and where all ranks meet if they are several.
pub struct Connected {
    /// By rank, those here.
    pub communicators: Vec<Box<dyn Communicator>>,
    /// `None` for one rank.
    pub group: Option<Arc<dyn Group>>,
}

/// Connects the ranks of `world`, those here computing with `processors`, all of them CPUs or all GPUs. At most `rows` rows are
/// gathered of `vocabulary`, whose widths are by rank.
///
/// # Errors
/// [`Error::Setting`] where NCCL does not start, [`Error::Compute`] where there is no memory for parts, [`Error::Machines`].
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "memory that is shared needs no room of its own"))]
pub fn connect(
    world: &World,
    processors: &[Arc<Processor>],
    rows: usize,
    vocabulary: &Arc<[usize]>,
) -> std::result::Result<Connected, Error> {
    if world.size == 1 {
        return Ok(Connected { communicators: vec![Box::new(Solo)], group: None });
    }
    #[cfg(feature = "cuda")]
    if processors[0].device().is_cuda() {
        let group = nccl::Nccl::connect(world)?;
        let widest = vocabulary.first().copied().unwrap_or(0);
        let member = |(index, processor)| -> Result<Box<dyn Communicator>> {
            Ok(Box::new(nccl::NcclMember::new(&group, index, processor, rows, widest)?))
        };
        let communicators = processors.iter().enumerate().map(member).collect::<Result<_>>();
        let communicators = communicators.map_err(Error::compute("make room for logits"))?;
        return Ok(Connected { communicators, group: Some(group) });
    }
    let group = SharedMemory::new(world);
    let member = |index| Box::new(Member::new(&group, index, vocabulary)) as Box<dyn Communicator>;
    Ok(Connected { communicators: (0..processors.len()).map(member).collect(), group: Some(group) })
}

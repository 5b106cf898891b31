//! Connecting the ranks of a model: NCCL between GPUs, shared memory and links between CPUs.

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::Result;

use super::communicator::{Communicator, Group, Solo};
use super::host_communicator::{HostCommunicator, HostGroup};
use super::world::World;
#[cfg(feature = "cuda")]
use crate::cuda::nccl::{NcclCommunicator, NcclGroup};
use crate::error::Error;
use crate::forward::device::Device;

/// The places of the ranks here, and where all ranks meet if they are several.
pub struct Connected {
    /// By rank, those here.
    pub communicators: Vec<Box<dyn Communicator>>,
    /// `None` for one rank.
    pub group: Option<Arc<dyn Group>>,
}

/// Connects the ranks of `world`, those here computing with `devices`, all of them CPUs or all GPUs. At most `rows` rows are
/// gathered of `vocabulary`, whose widths are by rank.
///
/// # Errors
/// [`Error::Setting`] where NCCL does not start, [`Error::Compute`] where there is no memory for parts, [`Error::Machines`].
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "memory that is shared needs no room of its own"))]
pub fn connect(
    world: &World,
    devices: &[Arc<Device>],
    rows: usize,
    vocabulary: &Arc<[usize]>,
) -> std::result::Result<Connected, Error> {
    if world.size == 1 {
        return Ok(Connected { communicators: vec![Box::new(Solo)], group: None });
    }
    #[cfg(feature = "cuda")]
    if devices[0].candle().is_cuda() {
        let group = NcclGroup::connect(world)?;
        let widest = vocabulary.first().copied().unwrap_or(0);
        let member = |(index, device)| -> Result<Box<dyn Communicator>> {
            Ok(Box::new(NcclCommunicator::new(&group, index, device, rows, widest)?))
        };
        let communicators = devices.iter().enumerate().map(member).collect::<Result<_>>();
        let communicators = communicators.map_err(Error::compute("make room for logits"))?;
        return Ok(Connected { communicators, group: Some(group) });
    }
    // CPU ranks share memory: a sum is an addition there, and copies over a socket are left to links between nodes.
    let group = HostGroup::new(world);
    let member = |index| Box::new(HostCommunicator::new(&group, index, vocabulary)) as Box<dyn Communicator>;
    Ok(Connected { communicators: (0..devices.len()).map(member).collect(), group: Some(group) })
}

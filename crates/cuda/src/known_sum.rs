//! A sum over GPUs whose answer is known, right after they have met: links that lose or hold back numbers show here, in seconds, and
//! not in a step that never ends.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use candle_core::{Result, Tensor, bail};

use super::device::GpuDevice;
use super::nccl::{NcclCommunicator, NcclGroup};
use flashjob_engine::{Communicator, Error, Group, World};

/// Numbers of each rank: enough for NCCL to use all of its channels.
const COUNT: usize = 1 << 18;

/// Time that GPUs of one machine have for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time that GPUs of several machines have, whose connections are opened by the first sum.
const PATIENCE_WITH_NODES: Duration = Duration::from_secs(60);

/// Has all ranks of `world` sum numbers that depend on rank and place; `gpus` are those of the ranks here.
///
/// # Errors
/// [`Error::Compute`] for a sum that is wrong, fails or does not come; the communicators are aborted then.
pub fn check(group: &Arc<NcclGroup>, gpus: &[Arc<GpuDevice>], world: &World) -> std::result::Result<(), Error> {
    sum_on_all(group, gpus, world).map_err(|source| {
        group.mark_failed(0);
        Error::Compute { attempt: "trust sums over GPUs (NCCL), which are tried on known numbers", source }
    })
}

fn sum_on_all(group: &Arc<NcclGroup>, gpus: &[Arc<GpuDevice>], world: &World) -> Result<()> {
    let patience = if world.nodes.is_some() { PATIENCE_WITH_NODES } else { PATIENCE };
    let (done, outcomes) = channel();
    for (index, device) in gpus.iter().enumerate() {
        let communicator = NcclCommunicator::without_parts(group, index, device.gpu());
        let (device, done, size) = (Arc::clone(device), done.clone(), world.size);
        // Not scoped: a rank that waits for ever is left behind.
        std::thread::spawn(move || done.send(sum(&communicator, &device, size)));
    }
    let deadline = Instant::now() + patience;
    gpus.iter().try_for_each(|_| {
        let left = deadline.saturating_duration_since(Instant::now());
        outcomes.recv_timeout(left).unwrap_or_else(|_| {
            bail!(
                "not all GPUs had the sum after {} s; run with NCCL_DEBUG=INFO to see how they are connected, and see whether \
                 NCCL_P2P_DISABLE=1 helps, as it does where a virtual machine stands between them",
                patience.as_secs()
            )
        })
    })
}

/// One rank's part, and what it got.
fn sum(communicator: &NcclCommunicator, device: &GpuDevice, size: usize) -> Result<()> {
    let rank = communicator.shard().rank;
    // Small whole numbers: their sums are exact, whatever the order.
    let factor = |place: usize| (1 + place % 7) as f32;
    let brought: Vec<f32> = (0..COUNT).map(|place| factor(place) * (1 + rank) as f32).collect();
    let tensor = Tensor::from_vec(brought, COUNT, &device.gpu().device())?;
    communicator.all_reduce(&tensor)?;
    let got: Vec<f32> = tensor.to_vec1()?;
    let of_all = (size * (size + 1) / 2) as f32;
    match got.iter().enumerate().find(|&(place, &got)| got != factor(place) * of_all) {
        Some((place, got)) => {
            bail!("rank {rank} got {got} at place {place}, where {} is right", factor(place) * of_all)
        }
        None => Ok(()),
    }
}

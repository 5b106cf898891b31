//! Ranks that are GPUs and meet through NCCL.
//!
//! Ranks of several nodes are one communicator, too: the first rank's unique id reaches them over the connections between nodes,
//! which then carry nothing but steps. That has been compiled, and has not run.
//!
//! Sums and parts travel on the ranks' own streams, in order with everything else that is queued there. A rank that gives up
//! aborts the communicators of all, so that nobody waits for it, neither a thread nor a GPU. Sums are of 16-bit numbers where
//! activations are: NCCL decides in which order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once, OnceLock};

use candle_core::cuda_backend::cudarc::nccl::result::{self, NcclError, NcclStatus};
use candle_core::cuda_backend::cudarc::nccl::sys;
use candle_core::{DType, Result, Tensor, bail};

use super::device_slice::DeviceSlice;
use super::driver::choose_gpu;
use super::gpu::Gpu;
use super::recording::Queued;
use flashjob_engine::{Communicator, Error, Group, Nodes, World};
use flashjob_model::Shard;

/// No rank has failed.
const NOBODY: usize = usize::MAX;

/// NCCL communicators of the ranks of this node.
pub struct NcclGroup {
    world_size: usize,
    /// The rank of the first one here.
    first: usize,
    communicators: Vec<sys::ncclComm_t>,
    /// Watches the connections to other nodes for as long as it is held.
    watch: OnceLock<Box<dyn Send + Sync>>,
    failed_rank: AtomicUsize,
    aborted: Once,
}

// SAFETY: NCCL's communicators may be used from any thread; each is used by its rank's alone, but for the abort, which is for
// other threads to call.
unsafe impl Send for NcclGroup {}
// SAFETY: as above.
unsafe impl Sync for NcclGroup {}

impl NcclGroup {
    /// Connects all ranks of `world`, those here on GPUs with these numbers among the visible ones.
    ///
    /// # Errors
    /// [`Error::Setting`] where NCCL is missing, or what it says; [`Error::Machines`] where another node is gone.
    pub fn connect(world: &World, ordinals: &[usize]) -> std::result::Result<Arc<Self>, Error> {
        let mut communicators = vec![std::ptr::null_mut(); ordinals.len()];
        let devices: Vec<i32> = ordinals.iter().map(|&ordinal| ordinal as i32).collect();
        let started = match &world.nodes {
            // SAFETY: both lists are as long as is said.
            None => unsafe {
                result::comm_init_all(communicators.as_mut_ptr(), devices.len() as i32, devices.as_ptr())
            },
            Some(nodes) => {
                Self::unique_id(nodes.as_ref())?.and_then(|id| Self::join(world, ordinals, id, &mut communicators))
            }
        };
        started.map_err(|NcclError(said)| {
            Error::Setting(format!(
                "tensor-parallel-size={} needs NCCL, and it does not start ({said:?}): see whether the image has libnccl.so.2, \
                 and run with NCCL_DEBUG=WARN to see what NCCL says",
                world.size
            ))
        })?;
        let group = Arc::new(Self {
            world_size: world.size,
            first: world.here.start,
            communicators,
            watch: OnceLock::new(),
            failed_rank: AtomicUsize::new(NOBODY),
            aborted: Once::new(),
        });
        if let Some(nodes) = &world.nodes {
            let lost = Arc::downgrade(&group);
            // A GPU that waits for a node which is gone waits for ever.
            let abort = move || lost.upgrade().into_iter().for_each(|group| group.mark_failed(0));
            group.watch.get_or_init(|| nodes.watch(Box::new(abort)));
        }
        Ok(group)
    }

    /// NCCL's unique id: made by the leader, sent to all others.
    fn unique_id(nodes: &dyn Nodes) -> std::result::Result<std::result::Result<sys::ncclUniqueId, NcclError>, Error> {
        let mut id = sys::ncclUniqueId { internal: [0; 128] };
        if !nodes.follows() {
            id = match result::get_uniqueid() {
                Ok(id) => id,
                Err(error) => return Ok(Err(error)),
            };
        }
        nodes.broadcast_id(bytemuck::cast_slice_mut(&mut id.internal))?;
        Ok(Ok(id))
    }

    /// Makes the communicators of the ranks here, all at once: each waits for all others.
    fn join(
        world: &World,
        ordinals: &[usize],
        id: sys::ncclUniqueId,
        communicators: &mut [sys::ncclComm_t],
    ) -> std::result::Result<NcclStatus, NcclError> {
        // Grouped: one thread makes communicators for several GPUs, and each waits for all others.
        result::group_start()?;
        for ((rank, &ordinal), communicator) in world.here.clone().zip(ordinals).zip(communicators) {
            choose_gpu(ordinal).map_err(|_| NcclError(sys::ncclResult_t::ncclUnhandledCudaError))?;
            // SAFETY: there is room for it, and it lives until the group ends.
            unsafe { result::comm_init_rank(communicator, world.size as i32, id, rank as i32) }?;
        }
        result::group_end()
    }

    /// The communicator at `index`, while everyone takes part.
    fn of(&self, index: usize) -> Result<sys::ncclComm_t> {
        match self.failed_rank() {
            None => Ok(self.communicators[index]),
            Some(other) => bail!("rank {} gave up", self.first + other),
        }
    }
}

impl Group for NcclGroup {
    /// A communicator that was aborted is gone for good: whoever gave up stays away.
    fn begin(&self) {}

    fn mark_failed(&self, index: usize) {
        let _first = self.failed_rank.compare_exchange(NOBODY, index, Ordering::SeqCst, Ordering::SeqCst);
        self.aborted.call_once(|| {
            for &communicator in &self.communicators {
                // SAFETY: it was made by NCCL, and nobody asks for it any more. What this answers helps nobody.
                let _ended = unsafe { result::comm_abort(communicator) };
            }
        });
    }

    fn failed_rank(&self) -> Option<usize> {
        Some(self.failed_rank.load(Ordering::SeqCst)).filter(|&index| index != NOBODY)
    }
}

impl Drop for NcclGroup {
    fn drop(&mut self) {
        self.aborted.call_once(|| {
            for &communicator in &self.communicators {
                // SAFETY: it was made by NCCL, and everything queued has been waited for.
                let _ended = unsafe { result::comm_destroy(communicator) };
            }
        });
    }
}

/// One rank's place among GPUs.
pub struct NcclCommunicator {
    group: Arc<NcclGroup>,
    /// Among the ranks here.
    index: usize,
    gpu: Arc<Gpu>,
    /// On rank 0: what arrives from another rank, before it is put in its columns.
    arriving: Option<Tensor>,
}

impl NcclCommunicator {
    /// The place of the rank at `index` of those here; `rows` and `width` of the largest part that is gathered.
    ///
    /// # Errors
    /// Memory for parts that rank 0 is refused.
    pub fn new(group: &Arc<NcclGroup>, index: usize, gpu: &Arc<Gpu>, rows: usize, width: usize) -> Result<Self> {
        let others = group.world_size - 1;
        let room = || Tensor::zeros(others * rows * width, DType::F32, &gpu.device());
        let arriving = (group.first + index == 0).then(room).transpose()?;
        Ok(Self { group: Arc::clone(group), index, gpu: Arc::clone(gpu), arriving })
    }

    /// The place of the rank at `index` without room for parts, to sum alone.
    pub fn without_parts(group: &Arc<NcclGroup>, index: usize, gpu: &Arc<Gpu>) -> Self {
        Self { group: Arc::clone(group), index, gpu: Arc::clone(gpu), arriving: None }
    }

    fn said<T>(&self, attempt: &str, said: std::result::Result<T, NcclError>) -> Result<T> {
        match (said, self.group.failed_rank()) {
            (Ok(done), _) => Ok(done),
            (Err(_), Some(other)) if other != self.index => bail!("rank {} gave up", self.group.first + other),
            (Err(NcclError(said)), _) => bail!("NCCL could not {attempt}: {said:?}"),
        }
    }

    /// Queues that all other ranks' parts arrive one after the other, and puts them side by side.
    fn receive(&self, part: &Tensor, whole: &Tensor, arriving: &Tensor) -> Result<()> {
        let (communicator, gpu) = (self.group.of(0)?, &self.gpu);
        let (rows, width) = part.dims2()?;
        let whole_width = whole.dim(1)?;
        let (arriving, whole) = (DeviceSlice::<f32>::of(arriving)?, DeviceSlice::of(whole)?);
        let others = || {
            // All ranks but the last have as much as the first.
            (1..self.group.world_size).map(|rank| {
                let first = rank * width;
                let from = arriving.from((rank - 1) * rows * width)?;
                Ok((rank, first, width.min(whole_width - first), from))
            })
        };
        gpu.queue("receiving logits", Queued::Library, || {
            // Received in one group, so that no order of arrival among ranks is imposed.
            self.said("begin to gather", result::group_start())?;
            for other in others() {
                let (rank, _, width, to) = other?;
                let (to, stream) = (to.pointer(rows * width, "a part of the logits")?, gpu.nccl_stream());
                // SAFETY: there is room for the rank's part.
                let queued = unsafe {
                    result::recv(to, rows * width, sys::ncclDataType_t::ncclFloat, rank as i32, communicator, stream)
                };
                self.said("receive logits", queued)?;
            }
            self.said("gather logits", result::group_end()).map(|_| ())
        })?;
        gpu.place_columns(DeviceSlice::of(part)?, whole, [rows, width], whole_width, 0)?;
        others().try_for_each(|other: Result<_>| {
            let (_, first, width, from) = other?;
            gpu.place_columns(from, whole, [rows, width], whole_width, first)
        })
    }
}

impl Communicator for NcclCommunicator {
    fn shard(&self) -> Shard {
        Shard { rank: self.group.first + self.index, world_size: self.group.world_size }
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<()> {
        let dtype = match tensor.dtype() {
            DType::F32 => sys::ncclDataType_t::ncclFloat,
            DType::F16 => sys::ncclDataType_t::ncclHalf,
            DType::BF16 => sys::ncclDataType_t::ncclBfloat16,
            other => bail!("ranks have no sums of {other:?}"),
        };
        let count = tensor.elem_count();
        let bytes = count * tensor.dtype().size_in_bytes();
        let numbers = DeviceSlice::<u8>::of(tensor)?.pointer(bytes, "a sum over ranks")?;
        let (communicator, stream) = (self.group.of(self.index)?, self.gpu.nccl_stream());
        self.gpu.queue("a sum over ranks", Queued::Library, || {
            // SAFETY: the tensor has so many numbers; in place is what NCCL allows where both are the same.
            let queued = unsafe {
                result::all_reduce(numbers, numbers, count, dtype, sys::ncclRedOp_t::ncclSum, communicator, stream)
            };
            self.said("sum over all ranks", queued).map(|_| ())
        })
    }

    fn gather(&self, part: &Tensor, whole: Option<&Tensor>) -> Result<()> {
        if let (Some(whole), Some(arriving)) = (whole, &self.arriving) {
            return self.receive(part, whole, arriving);
        }
        let (communicator, stream) = (self.group.of(self.index)?, self.gpu.nccl_stream());
        let from = DeviceSlice::<f32>::of(part)?.pointer(part.elem_count(), "a part of the logits")?;
        self.gpu.queue("sending logits", Queued::Library, || {
            let (count, dtype) = (part.elem_count(), sys::ncclDataType_t::ncclFloat);
            // SAFETY: the tensor has so many numbers.
            let queued = unsafe { result::send(from, count, dtype, 0, communicator, stream) };
            self.said("send logits", queued).map(|_| ())
        })
    }
}

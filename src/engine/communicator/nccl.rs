//! Ranks that are GPUs and meet through NCCL.
//!
//! Sums and parts travel on the ranks' own streams, in order with everything else that is queued there. A rank that gives up
//! aborts the communicators of all, so that nobody waits for it, neither a thread nor a GPU. Sums are of 16-bit numbers where
//! activations are: NCCL decides in which order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use candle_core::cuda_backend::cudarc::nccl::result::{self, NcclError};
use candle_core::cuda_backend::cudarc::nccl::sys;
use candle_core::{CpuStorage, CudaStorage, DType, InplaceOp1, Layout, Result, Tensor, bail};

use super::{Communicator, Group};
use crate::engine::cuda::Address;
use crate::engine::ops::access::Operand;
use crate::engine::processor::Processor;
use crate::model::Shard;

/// Nobody has given up.
const NOBODY: usize = usize::MAX;

/// Where the ranks of one model meet: a communicator for each.
pub struct Nccl {
    communicators: Vec<sys::ncclComm_t>,
    gave_up: AtomicUsize,
    aborted: Once,
}

// SAFETY: NCCL's communicators may be used from any thread; each is used by its rank's alone, but for the abort, which is for
// other threads to call.
unsafe impl Send for Nccl {}
// SAFETY: as above.
unsafe impl Sync for Nccl {}

impl Nccl {
    /// Of as many ranks as there are processors, rank 0 on the first GPU that is visible and so on.
    ///
    /// # Errors
    /// One sentence: NCCL is missing, or what it says.
    pub fn connect(world_size: usize) -> std::result::Result<Arc<Self>, String> {
        let mut communicators = vec![std::ptr::null_mut(); world_size];
        let devices: Vec<i32> = (0..world_size as i32).collect();
        // SAFETY: both lists are as long as is said.
        unsafe { result::comm_init_all(communicators.as_mut_ptr(), world_size as i32, devices.as_ptr()) }.map_err(
            |NcclError(said)| {
                format!(
                    "tensor-parallel-size={world_size} needs NCCL, and it does not start ({said:?}): see whether the image \
                     has libnccl.so.2, and run with NCCL_DEBUG=WARN to see what NCCL says"
                )
            },
        )?;
        Ok(Arc::new(Self { communicators, gave_up: AtomicUsize::new(NOBODY), aborted: Once::new() }))
    }

    /// The communicator of `rank`, while everyone takes part.
    fn of(&self, rank: usize) -> Result<sys::ncclComm_t> {
        match self.gave_up() {
            None => Ok(self.communicators[rank]),
            Some(other) => bail!("rank {other} gave up"),
        }
    }
}

impl Group for Nccl {
    /// A communicator that was aborted is gone for good: whoever gave up stays away.
    fn begin(&self) {}

    fn give_up(&self, rank: usize) {
        let _first = self.gave_up.compare_exchange(NOBODY, rank, Ordering::SeqCst, Ordering::SeqCst);
        self.aborted.call_once(|| {
            for &communicator in &self.communicators {
                // SAFETY: it was made by NCCL, and nobody asks for it any more. What this answers helps nobody.
                let _ended = unsafe { result::comm_abort(communicator) };
            }
        });
    }

    fn gave_up(&self) -> Option<usize> {
        Some(self.gave_up.load(Ordering::SeqCst)).filter(|&rank| rank != NOBODY)
    }
}

impl Drop for Nccl {
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
pub struct NcclMember {
    group: Arc<Nccl>,
    rank: usize,
    processor: Arc<Processor>,
    /// On rank 0: what arrives from another rank, before it is put in its columns.
    arriving: Option<Tensor>,
}

impl NcclMember {
    /// The place of `rank`; `rows` and `width` of the largest part that is gathered.
    ///
    /// # Errors
    /// Where rank 0 has no memory for parts.
    pub fn new(group: &Arc<Nccl>, rank: usize, processor: &Arc<Processor>, rows: usize, width: usize) -> Result<Self> {
        let others = group.communicators.len() - 1;
        let room = || Tensor::zeros(others * rows * width, DType::F32, processor.device());
        let arriving = (rank == 0).then(room).transpose()?;
        Ok(Self { group: Arc::clone(group), rank, processor: Arc::clone(processor), arriving })
    }

    fn said<T>(&self, attempt: &str, said: std::result::Result<T, NcclError>) -> Result<T> {
        match (said, self.group.gave_up()) {
            (Ok(done), _) => Ok(done),
            (Err(_), Some(other)) if other != self.rank => bail!("rank {other} gave up"),
            (Err(NcclError(said)), _) => bail!("NCCL could not {attempt}: {said:?}"),
        }
    }

    /// Queues that all other ranks' parts arrive one after the other, and puts them side by side.
    fn receive(&self, part: &Tensor, whole: &Tensor, arriving: &Tensor) -> Result<()> {
        let (communicator, gpu) = (self.group.of(0)?, self.processor.gpu()?);
        let (rows, width) = part.dims2()?;
        let whole_width = whole.dim(1)?;
        let (arriving, whole) = (Operand::of(arriving).address()?, Operand::of(whole).address()?);
        let others = || {
            // All ranks but the last have as much as the first.
            (1..self.group.communicators.len()).map(|rank| {
                let first = rank * width;
                (
                    rank,
                    first,
                    width.min(whole_width - first),
                    arriving.plus((rank - 1) * rows * width * size_of::<f32>()),
                )
            })
        };
        self.said("begin to gather", result::group_start())?;
        for (rank, _, width, to) in others() {
            // SAFETY: there is room for every rank's part.
            let queued = unsafe {
                let (to, stream) = (to.pointer(), gpu.nccl_stream());
                result::recv(to, rows * width, sys::ncclDataType_t::ncclFloat, rank as i32, communicator, stream)
            };
            self.said("receive logits", queued)?;
        }
        self.said("gather logits", result::group_end())?;
        gpu.place_columns(Operand::of(part).address()?, whole, [rows, width], whole_width, 0)?;
        others()
            .try_for_each(|(_, first, width, from)| gpu.place_columns(from, whole, [rows, width], whole_width, first))
    }
}

impl Communicator for NcclMember {
    fn shard(&self) -> Shard {
        Shard { rank: self.rank, world_size: self.group.communicators.len() }
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<()> {
        tensor.inplace_op1(&AllReduce { member: self })
    }

    fn gather(&self, part: &Tensor, whole: Option<&Tensor>) -> Result<()> {
        if let (Some(whole), Some(arriving)) = (whole, &self.arriving) {
            return self.receive(part, whole, arriving);
        }
        let (communicator, stream) = (self.group.of(self.rank)?, self.processor.gpu()?.nccl_stream());
        let from = Operand::of(part).address()?.pointer();
        // SAFETY: the tensor has so many numbers.
        let queued =
            unsafe { result::send(from, part.elem_count(), sys::ncclDataType_t::ncclFloat, 0, communicator, stream) };
        self.said("send logits", queued).map(|_| ())
    }
}

struct AllReduce<'a> {
    member: &'a NcclMember,
}

impl InplaceOp1 for AllReduce<'_> {
    fn name(&self) -> &'static str {
        "all-reduce"
    }

    fn cpu_fwd(&self, _storage: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        bail!("NCCL sums what is on GPUs")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        use candle_core::backend::BackendStorage;
        let member = self.member;
        let dtype = match storage.dtype() {
            DType::F32 => sys::ncclDataType_t::ncclFloat,
            DType::F16 => sys::ncclDataType_t::ncclHalf,
            DType::BF16 => sys::ncclDataType_t::ncclBfloat16,
            other => bail!("ranks have no sums of {other:?}"),
        };
        let numbers = Address::of(storage, layout)?.pointer();
        let (communicator, stream) = (member.group.of(member.rank)?, member.processor.gpu()?.nccl_stream());
        let count = layout.shape().elem_count();
        // SAFETY: the tensor has so many numbers; in place is what NCCL allows where both are the same.
        let queued = unsafe {
            result::all_reduce(numbers, numbers, count, dtype, sys::ncclRedOp_t::ncclSum, communicator, stream)
        };
        member.said("sum over all ranks", queued).map(|_| ())
    }
}

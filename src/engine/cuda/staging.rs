//! Bytes on their way to a GPU from any thread, through memory that the driver has pinned.
//!
//! A copy from other memory is done by the driver, piece by piece and one thread at a time. From pinned memory the GPU
//! fetches it by itself, while whoever brought it brings the next.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result};

use super::Address;

/// What is copied at a time.
const STAGE_BYTES: usize = 2 << 20;

/// Stages that are kept for the next copy, besides those that threads are filling.
const KEPT_STAGES: usize = 16;

/// Stages, the one that was used longest ago first.
pub(super) struct Staging {
    stream: Arc<CudaStream>,
    stages: Mutex<VecDeque<Stage>>,
}

struct Stage {
    bytes: PinnedHostSlice<u8>,
    /// The GPU has what was in it last.
    copied: CudaEvent,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What is being read may not be given back. A driver that fails reads nothing any more.
        let _ = self.copied.synchronize();
    }
}

impl Staging {
    /// To the GPU of `stream`, in its order. Takes memory when something is copied.
    pub(super) fn new(stream: Arc<CudaStream>) -> Self {
        Self { stream, stages: Mutex::default() }
    }

    /// Queues a copy of `bytes` to `to`; they may change when it returns.
    ///
    /// # Safety
    /// There is room for them at `to`, for as long as work is queued.
    pub(super) unsafe fn copy(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.stream.context().bind_to_thread().w()?;
        for (index, piece) in bytes.chunks(STAGE_BYTES).enumerate() {
            let mut stage = self.take()?;
            stage.copied.synchronize().w()?;
            let staged = &mut stage.bytes.as_mut_slice().w()?[..piece.len()];
            staged.copy_from_slice(piece);
            let Address(start) = to.plus(index * STAGE_BYTES);
            // SAFETY: there is room, as the caller promises; the stage is neither written nor given back before it was read.
            unsafe { result::memcpy_htod_async(start, staged, self.stream.cu_stream()) }.w()?;
            stage.copied.record(&self.stream).w()?;
            self.stages.lock().unwrap_or_else(PoisonError::into_inner).push_back(stage);
        }
        Ok(())
    }

    fn take(&self) -> Result<Stage> {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        if stages.len() >= KEPT_STAGES
            && let Some(stage) = stages.pop_front()
        {
            return Ok(stage);
        }
        drop(stages);
        let context = self.stream.context();
        // SAFETY: zeros are written to it before anything is read.
        let mut bytes = unsafe { context.alloc_pinned_with_flags(STAGE_BYTES, 0) }.w()?;
        bytes.as_mut_slice().w()?.fill(0);
        Ok(Stage { bytes, copied: context.new_event(None).w()? })
    }
}

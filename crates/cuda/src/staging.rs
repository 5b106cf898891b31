//! Bytes on their way to a GPU from any thread: while it fetches some of them, whoever brought those brings the next.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::CudaStream;

use super::device_slice::DeviceSlice;
use super::pinned::Pinned;

/// Bytes that are copied at a time.
const STAGE_BYTES: usize = 2 << 20;

/// Stages that are kept for the next copy, besides those that threads are filling.
const KEPT_STAGES: usize = 16;

/// Stages, the one that was used longest ago first.
pub(super) struct Staging {
    stream: Arc<CudaStream>,
    stages: Mutex<VecDeque<Pinned<u8>>>,
}

impl Staging {
    /// To the GPU of `stream`, in its order. Takes memory when something is copied.
    pub(super) fn new(stream: Arc<CudaStream>) -> Self {
        Self { stream, stages: Mutex::default() }
    }

    /// Queues a copy of `bytes` to `to`; they may change when it returns.
    ///
    /// # Errors
    /// More bytes than there is room for, and the driver's own.
    pub(super) fn copy(&self, to: DeviceSlice<'_, u8>, bytes: &[u8]) -> Result<()> {
        for (index, piece) in bytes.chunks(STAGE_BYTES).enumerate() {
            let mut stage = self.take()?;
            let write = |staged: &mut [u8]| {
                staged[..piece.len()].copy_from_slice(piece);
                piece.len()
            };
            stage.copy(&self.stream, to.from(index * STAGE_BYTES)?, write)?;
            self.lock().push_back(stage);
        }
        Ok(())
    }

    fn take(&self) -> Result<Pinned<u8>> {
        let mut stages = self.lock();
        // The one used longest ago has most likely been fetched: taking it does not wait.
        let kept = if stages.len() >= KEPT_STAGES { stages.pop_front() } else { None };
        drop(stages);
        kept.map_or_else(|| Pinned::zeros(&self.stream, STAGE_BYTES), Ok)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Pinned<u8>>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

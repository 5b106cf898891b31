//! Device of a rank: the threads of a pool, or a GPU with this engine's kernels loaded on it.
//!
//! Operations are given one, and use the half of it that their tensors are on. What is computed is not known here.

use std::sync::Arc;

use candle_core::Device as CandleDevice;

use flashjob_cpu::Pool;
use flashjob_host::cgroup::free_memory_bytes;

/// A pool of CPU threads, or a GPU with such a pool on its host.
pub struct Device {
    pool: Arc<Pool>,
    candle: CandleDevice,
    #[cfg(feature = "cuda")]
    gpu: Option<crate::cuda::gpu::Gpu>,
}

impl Device {
    /// The threads of `pool`.
    pub fn cpu(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            candle: CandleDevice::Cpu,
            #[cfg(feature = "cuda")]
            gpu: None,
        }
    }

    /// A GPU; what must be done on the host is done by `pool`.
    #[cfg(feature = "cuda")]
    pub fn cuda(gpu: crate::cuda::gpu::Gpu, pool: Arc<Pool>) -> Self {
        Self { pool, candle: gpu.device(), gpu: Some(gpu) }
    }

    /// The device as candle names it, on which tensors are allocated.
    pub fn candle(&self) -> &CandleDevice {
        &self.candle
    }

    /// CPU threads of the rank, or of the GPU's host.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Bytes that may still be allocated there; `None` where the system does not say.
    ///
    /// # Errors
    /// What a GPU says instead.
    pub fn free_bytes(&self) -> candle_core::Result<Option<u64>> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            // What was given back is free once all that was queued before it is done.
            self.wait()?;
            return gpu.free_bytes().map(Some);
        }
        Ok(free_memory_bytes())
    }

    /// Returns when nothing that was begun is still under way; a CPU never leaves anything under way.
    ///
    /// # Errors
    /// What a GPU says of it.
    pub fn wait(&self) -> candle_core::Result<()> {
        self.candle.synchronize()
    }

    /// GPU of the rank.
    ///
    /// # Errors
    /// If this is a CPU: a tensor is on another device than its rank.
    #[cfg(feature = "cuda")]
    pub fn gpu(&self) -> candle_core::Result<&crate::cuda::gpu::Gpu> {
        match &self.gpu {
            Some(gpu) => Ok(gpu),
            None => candle_core::bail!("a tensor is on a GPU, and its rank computes on the CPU"),
        }
    }
}

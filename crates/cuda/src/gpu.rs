//! A GPU with its stream, kernels and workspaces.

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublas::sys::{cublasMath_t, cublasSetMathMode, cublasSetWorkspace_v2};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::cuda_backend::cudarc::nccl::sys::cudaStream_t;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{Device as CandleDevice, Result};

use super::kernels::Kernels;
use super::recording::Recording;
use super::row_tiles::RowTiles;
use super::staging::Staging;
use super::step_mirror::StepMirror;
use flashjob_cpu::AttentionShape;
use flashjob_engine::EngineLimits;
use flashjob_model::Dtype;

/// Workspace of cuBLAS: with less it chooses slower products, and without any it would allocate while a step is recorded
/// (cuBLAS documentation, "cublasSetWorkspace": 32 MiB on Hopper, 4 MiB elsewhere).
const CUBLAS_WORKSPACE_BYTES: usize = 32 << 20;

/// A GPU with everything loaded that a forward pass launches.
pub struct Gpu {
    pub(super) device: CudaDevice,
    /// Held for cuBLAS.
    _workspace: CudaSlice<u8>,
    pub(super) kernels: Kernels,
    pub(super) dtype: Dtype,
    /// Pinned memory on the way of weights.
    pub(super) staging: Arc<Staging>,
    pub(super) recording: Recording,
    /// Where rows do not depend on each other: shapes of products that were seen to keep that.
    pub(super) row_tiles: Option<RowTiles>,
    step: Option<StepMirror>,
}

impl Gpu {
    /// The GPU with this number among those that are visible, for activations of `dtype`, which has 16 bits. Where it is `deterministic`,
    /// rows of a step do not depend on each other.
    ///
    /// # Errors
    /// The driver's own error.
    pub fn open(ordinal: usize, dtype: Dtype, deterministic: bool) -> Result<Self> {
        // A stream of its own, not the default one: that cannot be captured into a graph.
        let device = CudaDevice::new_with_stream(ordinal)?;
        // SAFETY: everything on this device happens on this one stream, in order.
        unsafe { device.disable_event_tracking() };
        // Loaded now and not at first use: that would be in the middle of a step, and might be while one is recorded.
        let kernels = Kernels::load(&device, dtype)?;
        let (stream, handle) = (device.cuda_stream(), device.cublas_handle());
        let workspace = stream.alloc_zeros::<u8>(CUBLAS_WORKSPACE_BYTES).w()?;
        let address = workspace.device_ptr(&stream).0 as *mut c_void;
        // SAFETY: the handle is alive, and so is the memory for as long as there are products.
        unsafe { cublasSetWorkspace_v2(*handle.handle(), address, CUBLAS_WORKSPACE_BYTES) }.result().w()?;
        // Where cuBLAS adds up a product in parts (split-K), it may do so in 16 bits unless told otherwise (cuBLAS documentation,
        // "cublasMath_t").
        let mode = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: the handle is alive.
        unsafe { cublasSetMathMode(*handle.handle(), mode) }.result().w()?;
        let (staging, recording) = (Arc::new(Staging::new(stream)), Recording::default());
        let row_tiles = deterministic.then(RowTiles::default);
        Ok(Self { device, _workspace: workspace, kernels, dtype, staging, recording, row_tiles, step: None })
    }

    /// With room for steps within `limits` on a rank of `shape`.
    ///
    /// # Errors
    /// Memory that is refused, and those of attention.
    pub fn for_steps(mut self, limits: &EngineLimits, shape: AttentionShape) -> Result<Self> {
        let resident_blocks = self.resident_attention_blocks(shape, limits.block_size)?;
        self.step = Some(StepMirror::new(self.stream(), limits, shape, resident_blocks, self.is_deterministic())?);
        Ok(self)
    }

    /// The step at hand.
    ///
    /// # Panics
    /// Without [`Gpu::for_steps`].
    pub fn step(&self) -> &StepMirror {
        self.step.as_ref().expect("a GPU that computes steps has room for them")
    }

    /// Its product name and compute capability; empty where the driver does not say.
    pub fn name(&self) -> String {
        let stream = self.stream();
        let context = stream.context();
        match (context.name(), context.compute_capability()) {
            (Ok(name), Ok((major, minor))) => format!("{name}, compute capability {major}.{minor}"),
            _ => String::new(),
        }
    }

    /// Its number among the GPUs that are visible.
    pub fn ordinal(&self) -> usize {
        self.stream().context().ordinal()
    }

    /// The device as candle names it.
    pub fn device(&self) -> CandleDevice {
        CandleDevice::Cuda(self.device.clone())
    }

    /// True where rows of a step do not depend on each other.
    pub fn is_deterministic(&self) -> bool {
        self.row_tiles.is_some()
    }

    /// Number format of activations.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes that may still be allocated.
    ///
    /// # Errors
    /// The driver's own error.
    pub fn free_bytes(&self) -> Result<u64> {
        let (free, _total) = self.stream().context().mem_get_info().map_err(candle_core::Error::wrap)?;
        Ok(free as u64)
    }

    /// The stream, as NCCL wants it.
    pub fn nccl_stream(&self) -> cudaStream_t {
        self.stream().cu_stream().cast()
    }

    pub(super) fn stream(&self) -> Arc<CudaStream> {
        self.device.cuda_stream()
    }
}

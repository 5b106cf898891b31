//! One GPU: its stream, this engine's kernels on it, and what they are launched with.
//!
//! Addresses and shapes go in, work is queued, nothing is waited for. Which tensors those are is for the operations to
//! say; what a forward pass is made of is not known here.

mod attention;
mod graph;
mod kernels;
mod key_parts;
mod limits;
mod matrix;
mod pinned;
mod product;
mod staging;
mod step;
mod upload;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasSetWorkspace_v2;
use candle_core::cuda_backend::cudarc::driver::result::device;
use candle_core::cuda_backend::cudarc::driver::sys::CUresult;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError};
use candle_core::cuda_backend::cudarc::nccl::sys::cudaStream_t;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{CudaStorage, DType, Device, Layout, Result, bail};
use half::{bf16, f16};
use std::ffi::c_void;
use std::sync::Arc;

use super::step::StepExtent;
use flashjob_model::Dtype;
use kernels::Kernels;
use staging::Staging;

pub use attention::PagedQueries;
pub use graph::Graphs;
pub use kernels::{AddRmsNormAt, RopeAt};
pub use matrix::Filling;
pub use product::ProductAt;
pub use step::StepMirror;

/// Where in a GPU's memory something begins. It does not keep that memory alive: whoever holds one holds the tensor, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(u64);

impl Address {
    /// Nothing.
    pub const NULL: Address = Address(0);

    /// Of a tensor's first number.
    ///
    /// # Errors
    /// If its numbers do not lie side by side, or are of a type that no kernel takes.
    pub fn of(storage: &CudaStorage, layout: &Layout) -> Result<Address> {
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("this operation wants contiguous tensors, not {layout:?}")
        };
        let stream = storage.device.cuda_stream();
        // Nothing is tracked by events (see `Gpu::open`): the guard that comes with an address has nothing to do.
        let (first, bytes) = match storage.dtype() {
            DType::F32 => (storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0, 4),
            DType::F16 => (storage.as_cuda_slice::<f16>()?.device_ptr(&stream).0, 2),
            DType::BF16 => (storage.as_cuda_slice::<bf16>()?.device_ptr(&stream).0, 2),
            DType::U32 => (storage.as_cuda_slice::<u32>()?.device_ptr(&stream).0, 4),
            other => bail!("this operation does not take numbers of type {other:?}"),
        };
        Ok(Address(first + (start * bytes) as u64))
    }

    /// For calls in C.
    pub fn pointer(self) -> *mut c_void {
        self.0 as *mut c_void
    }

    /// So many bytes further on.
    pub fn plus(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// How many GPUs this process may use.
///
/// # Errors
/// One sentence: that there is no driver, or what it says.
pub fn visible_gpus() -> std::result::Result<usize, String> {
    let said = |error: DriverError| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => "no CUDA driver: there is no libcuda.so.1, or it finds no GPU; give the \
             container GPUs (docker run --gpus all, or nvidia.com/gpu in a pod), or set device=cpu"
            .to_owned(),
        _ => format!("no CUDA driver: it says {error}; see whether nvidia-smi works here, or set device=cpu"),
    };
    CudaContext::device_count().map(|count| count as usize).map_err(said)
}

/// What cuBLAS computes in: with less it chooses slower products, and without any it would allocate while a step is recorded
/// (cuBLAS documentation, "cublasSetWorkspace": 32 MiB on Hopper, 4 MiB elsewhere).
const CUBLAS_WORKSPACE_BYTES: usize = 32 << 20;

/// What the driver identifies the GPUs by that this process may use, in their order; none where there are none.
pub fn gpu_identifiers() -> Vec<[u8; 16]> {
    let identifier = |ordinal| {
        let uuid = device::get(ordinal as i32).and_then(device::get_uuid).ok()?;
        Some(uuid.bytes.map(|byte| byte as u8))
    };
    (0..visible_gpus().unwrap_or(0)).filter_map(identifier).collect()
}

/// Makes the GPU with this number among those that are visible the one that NCCL is set up on by this thread.
///
/// # Errors
/// What the driver says.
pub fn choose_gpu(ordinal: usize) -> std::result::Result<(), DriverError> {
    CudaContext::new(ordinal)?.bind_to_thread()
}

/// A GPU with everything loaded that a forward pass launches.
pub struct Gpu {
    device: CudaDevice,
    /// Held for cuBLAS.
    _workspace: CudaSlice<u8>,
    kernels: Kernels,
    dtype: Dtype,
    /// Of weights.
    staging: Arc<Staging>,
    step: Option<StepMirror>,
}

impl Gpu {
    /// The GPU with this number among those that are visible, for activations of `dtype`, which has 16 bits.
    ///
    /// # Errors
    /// What the driver says.
    pub fn open(ordinal: usize, dtype: Dtype) -> Result<Self> {
        // A stream of its own, not the default one: that cannot be captured into a graph.
        let device = CudaDevice::new_with_stream(ordinal)?;
        // SAFETY: everything on this device happens on this one stream, in order.
        unsafe { device.disable_event_tracking() };
        let kernels = Kernels::load(&device, dtype)?;
        let (stream, handle) = (device.cuda_stream(), device.cublas_handle());
        let workspace = stream.alloc_zeros::<u8>(CUBLAS_WORKSPACE_BYTES).w()?;
        let address = workspace.device_ptr(&stream).0 as *mut c_void;
        // SAFETY: the handle is alive, and so is the memory for as long as there are products.
        unsafe { cublasSetWorkspace_v2(*handle.handle(), address, CUBLAS_WORKSPACE_BYTES) }.result().w()?;
        let staging = Arc::new(Staging::new(stream));
        Ok(Self { device, _workspace: workspace, kernels, dtype, staging, step: None })
    }

    /// With room for steps of up to `extent`.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn for_steps(mut self, extent: StepExtent) -> Result<Self> {
        self.step = Some(StepMirror::new(self.stream(), extent)?);
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

    /// For candle.
    pub fn device(&self) -> Device {
        Device::Cuda(self.device.clone())
    }

    /// Of activations.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes that may still be allocated.
    ///
    /// # Errors
    /// What the driver says.
    pub fn free_bytes(&self) -> Result<u64> {
        let (free, _total) = self.stream().context().mem_get_info().map_err(candle_core::Error::wrap)?;
        Ok(free as u64)
    }

    /// The stream, as NCCL wants it.
    pub fn nccl_stream(&self) -> cudaStream_t {
        self.stream().cu_stream().cast()
    }

    fn stream(&self) -> Arc<CudaStream> {
        self.device.cuda_stream()
    }
}

//! GPUs as the driver lists them.

use candle_core::cuda_backend::cudarc::driver::result::device;
use candle_core::cuda_backend::cudarc::driver::sys::CUresult;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError};

/// Number of GPUs that this process may use.
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

/// UUIDs of the GPUs that this process may use, in the driver's order; none where there are none.
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
/// The driver's own error.
pub fn choose_gpu(ordinal: usize) -> std::result::Result<(), DriverError> {
    CudaContext::new(ordinal)?.bind_to_thread()
}

//! The driver: its version, and the GPUs that it lists.

use candle_core::cuda_backend::cudarc::driver::result::device;
use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUresult, cuDriverGetVersion};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError};

/// CUDA version that the driver must know, `1000 · major + 10 · minor`: that of the compiler of `scripts/cuda-wheels.txt`, whose PTX
/// earlier ones refuse.
const NEEDED_CUDA: i32 = 13_000;

/// The first driver that knows it (CUDA Toolkit Release Notes, "CUDA Driver").
const NEEDED_DRIVER: &str = "580";

/// Lowest compute capability of FlashAttention 2 and of bfloat16 products.
const NEEDED_CAPABILITY: (i32, i32) = (8, 0);

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

/// Tells whether the driver and the first `count` GPUs can run this build.
///
/// # Errors
/// One sentence: what is too old, and what is needed.
pub fn check_gpus(count: usize) -> std::result::Result<(), String> {
    let version = version().map_err(|error| format!("the CUDA driver does not tell its version: {error}"))?;
    if version < NEEDED_CUDA {
        return Err(format!(
            "the NVIDIA driver of this machine is made for CUDA {}, and this build needs CUDA {}: have driver \
             {NEEDED_DRIVER} or later installed on the machine (`nvidia-smi` shows the driver), or set device=cpu",
            shown(version),
            shown(NEEDED_CUDA)
        ));
    }
    (0..count).try_for_each(check_capability)
}

fn check_capability(ordinal: usize) -> std::result::Result<(), String> {
    let (major, minor) = capability(ordinal)
        .map_err(|error| format!("the CUDA driver does not tell the compute capability of GPU {ordinal}: {error}"))?;
    if (major, minor) >= NEEDED_CAPABILITY {
        return Ok(());
    }
    let (needed_major, needed_minor) = NEEDED_CAPABILITY;
    let name = device::get(ordinal as i32).and_then(device::get_name).unwrap_or_default();
    Err(format!(
        "GPU {ordinal} ({name}) has compute capability {major}.{minor}, and this build needs {needed_major}.{needed_minor} \
         or higher, as A100, A10, L4 and H100 have: choose such GPUs with CUDA_VISIBLE_DEVICES, or set device=cpu"
    ))
}

fn capability(ordinal: usize) -> std::result::Result<(i32, i32), DriverError> {
    use CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let gpu = device::get(ordinal as i32)?;
    // SAFETY: the driver has just named this GPU.
    let attribute = |which| unsafe { device::get_attribute(gpu, which) };
    Ok((attribute(MAJOR)?, attribute(MINOR)?))
}

/// The CUDA version that the driver knows.
fn version() -> std::result::Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: it writes one number, to where there is room for it.
    unsafe { cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

/// A CUDA version as people write it.
fn shown(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Memory of the GPU that has least of those that this process may use; `None` where the driver does not say.
pub fn least_memory_bytes() -> Option<u64> {
    let memory = |ordinal| {
        let device = device::get(ordinal as i32).ok()?;
        // SAFETY: the driver itself has named the device.
        unsafe { device::total_mem(device) }.ok()
    };
    let of_each = (0..visible_gpus().ok()?).map(memory).collect::<Option<Vec<_>>>()?;
    of_each.into_iter().min().map(|bytes| bytes as u64)
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

//! Devices of the ranks: opened before memory is divided, and given room for steps once the size of a step is known.

use std::sync::Arc;

use super::plan::LoadPlan;
use super::platform::Platform;
use super::roofline::CpuNodes;
use crate::error::Error;
use crate::forward::device::Device;
use crate::schedule::limits::EngineLimits;
use flashjob_cpu::{AttentionShape, Limits, Pool, TooLittleMemory};
use flashjob_host::cgroup::free_memory_bytes;
use flashjob_model::Dtype;

/// Devices of a node's `ranks`, before anything is loaded; the threads of `cpus` are those of all of them together.
///
/// # Errors
/// [`Error::Setting`] where a GPU cannot do what is asked of it, [`Error::Compute`] with what the driver says.
pub fn open(platform: Platform, ranks: usize, cpus: CpuNodes, dtype: Dtype) -> Result<Vec<DeviceHandle>, Error> {
    let CpuNodes { threads, isa, .. } = cpus;
    match platform {
        // As many threads as there are ranks at least; no more than asked for where those are enough.
        Platform::Cpu => {
            let pool = || Arc::new(Pool::with_isa((threads / ranks).max(1), isa));
            Ok((0..ranks).map(|_| DeviceHandle::Cpu(pool())).collect())
        }
        Platform::Gpus if dtype == Dtype::F32 => Err(Error::Setting(
            "flash attention takes numbers of 16 bits: with device=cuda set dtype to float16 or bfloat16".to_owned(),
        )),
        #[cfg(feature = "cuda")]
        Platform::Gpus => {
            let open = |rank| crate::cuda::gpu::Gpu::open(rank, dtype).map(|gpu| DeviceHandle::Gpu(Box::new(gpu)));
            let open: Vec<_> = (0..ranks).map(open).collect::<Result<_, _>>().map_err(Error::compute("open a GPU"))?;
            let first = open[0].kernels();
            match open.iter().map(DeviceHandle::kernels).find(|other| *other != first) {
                None => Ok(open),
                Some(other) => Err(Error::Setting(format!(
                    "tensor-parallel-size: {ranks} ranks on a machine need GPUs of one kind, as all wait for the slowest: \
                     here are {first} and {other}; choose among them with CUDA_VISIBLE_DEVICES"
                ))),
            }
        }
        #[cfg(not(feature = "cuda"))]
        Platform::Gpus => Err(Error::Setting("this binary was built without the feature `cuda`".to_owned())),
    }
}

/// Bytes that may still be allocated where least are free; `None` where the system does not say.
///
/// # Errors
/// What a GPU says.
pub fn free_bytes(handles: &[DeviceHandle]) -> Result<Option<u64>, Error> {
    let free_bytes = handles.iter().map(DeviceHandle::free_bytes).collect::<Result<Vec<_>, _>>()?;
    Ok(free_bytes.into_iter().flatten().min())
}

/// Devices with room for steps within `limits`, by rank, and the one that chooses tokens.
///
/// # Errors
/// Where a GPU has no memory for it.
pub fn devices(
    handles: Vec<DeviceHandle>,
    plan: &LoadPlan,
    limits: &EngineLimits,
) -> Result<(Vec<Arc<Device>>, Arc<Device>), Error> {
    // Ranks are at rest when tokens are chosen: a single one's threads do that, too.
    let host = match &handles[..] {
        [DeviceHandle::Cpu(pool)] => Arc::clone(pool),
        _ => Arc::new(Pool::with_isa(plan.cpus.threads, plan.cpus.isa)),
    };
    let ready = |handle: DeviceHandle| handle.ready(limits, plan.shape, &host);
    let devices = handles.into_iter().map(ready).collect::<Result<Vec<_>, _>>()?;
    let sampling = match plan.platform {
        Platform::Cpu => Arc::new(Device::cpu(host)),
        Platform::Gpus => Arc::clone(&devices[0]),
    };
    Ok((devices, sampling))
}

/// The device of one rank, before the size of a step is known.
pub enum DeviceHandle {
    Cpu(Arc<Pool>),
    #[cfg(feature = "cuda")]
    Gpu(Box<crate::cuda::gpu::Gpu>),
}

impl DeviceHandle {
    /// Bytes that may still be allocated where this rank computes; `None` where the system does not say.
    pub fn free_bytes(&self) -> Result<Option<u64>, Error> {
        match self {
            DeviceHandle::Cpu(_) => Ok(free_memory_bytes()),
            #[cfg(feature = "cuda")]
            DeviceHandle::Gpu(gpu) => gpu.free_bytes().map(Some).map_err(Error::compute("ask a GPU for its memory")),
        }
    }

    /// Limits of all nodes together, each with as many `ranks` of this kind, or why that cannot be measured;
    /// `cpus` are those that ranks on a CPU share.
    ///
    /// # Errors
    /// What a GPU says.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "ranks on a CPU share what is measured once"))]
    pub fn limits(&self, ranks: usize, cpus: CpuNodes) -> Result<Result<Limits, TooLittleMemory>, Error> {
        match self {
            DeviceHandle::Cpu(_) => Ok(cpus.limits()),
            #[cfg(feature = "cuda")]
            DeviceHandle::Gpu(gpu) => {
                let limits = gpu.limits().map_err(Error::compute("measure a GPU's limits"))?;
                Ok(Ok(limits.times(ranks * cpus.nodes)))
            }
        }
    }

    /// As results name what computes.
    pub fn kernels(&self) -> String {
        match self {
            DeviceHandle::Cpu(pool) => pool.isa().name().to_owned(),
            #[cfg(feature = "cuda")]
            DeviceHandle::Gpu(gpu) => gpu.name(),
        }
    }

    /// A device with room for steps within `limits`. Hosts of GPUs do little: one pool serves all of them.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "a CPU computes steps of any size"))]
    pub fn ready(self, limits: &EngineLimits, shape: AttentionShape, host: &Arc<Pool>) -> Result<Arc<Device>, Error> {
        match self {
            DeviceHandle::Cpu(pool) => Ok(Arc::new(Device::cpu(pool))),
            #[cfg(feature = "cuda")]
            DeviceHandle::Gpu(gpu) => {
                let gpu = gpu.for_steps(limits, shape).map_err(Error::compute("make room for steps"))?;
                Ok(Arc::new(Device::cuda(gpu, Arc::clone(host))))
            }
        }
    }
}

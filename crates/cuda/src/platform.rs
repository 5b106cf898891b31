//! The GPUs that this process sees as a platform: each rank has one, with a memory of its own.

use std::sync::Arc;

use super::device::GpuDevice;
use super::driver::visible_gpus;
use super::gpu::Gpu;
use super::nccl::{NcclCommunicator, NcclGroup};
use flashjob_cpu::{AttentionShape, Isa, Limits, Pool, TooLittleMemory};
use flashjob_engine::{
    CacheOrder, Communicator, Connected, CpuNodes, Device, DeviceHandles, EngineLimits, Error, NodeDevices, Platform,
    World,
};
use flashjob_model::{Dtype, Model};

/// The GPUs that this process sees, one a rank.
#[derive(Clone, Copy, Debug)]
pub struct Cuda;

impl Platform for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn default_ranks_per_node(&self, suits: &dyn Fn(usize) -> bool) -> usize {
        // Only asked for where it decides: the driver starts with the question.
        let visible = visible_gpus().unwrap_or(1);
        (1..=visible).rev().find(|ranks| suits(*ranks)).unwrap_or(1)
    }

    fn max_num_batched_tokens(&self) -> usize {
        8192
    }

    fn cache_order(&self, _isa: Isa) -> CacheOrder {
        CacheOrder::Tokens
    }

    fn weights_dtype(&self, _model: &Model, dtype: Dtype) -> Dtype {
        dtype
    }

    fn activations(&self, dtype: Dtype) -> Dtype {
        dtype
    }

    fn ranks_share_memory(&self) -> bool {
        false
    }

    fn replays(&self) -> bool {
        true
    }

    fn profiles(&self) -> bool {
        true
    }

    fn gpus_per_rank(&self) -> usize {
        1
    }

    fn open(&self, ranks: usize, cpus: CpuNodes, dtype: Dtype) -> Result<Box<dyn DeviceHandles>, Error> {
        if dtype == Dtype::F32 {
            return Err(Error::Setting(
                "flash attention takes numbers of 16 bits: with device=cuda set dtype to float16 or bfloat16"
                    .to_owned(),
            ));
        }
        let gpus = (0..ranks).map(|rank| Gpu::open(rank, dtype)).collect::<Result<Vec<_>, _>>();
        let gpus = gpus.map_err(Error::compute("open a GPU"))?;
        let first = gpus.first().map_or_else(String::new, Gpu::name);
        match gpus.iter().map(Gpu::name).find(|other| *other != first) {
            None => Ok(Box::new(OpenGpus { gpus, cpus })),
            Some(other) => Err(Error::Setting(format!(
                "tensor-parallel-size: {ranks} ranks on a machine need GPUs of one kind, as all wait for the slowest: \
                 here are {first} and {other}; choose among them with CUDA_VISIBLE_DEVICES"
            ))),
        }
    }
}

/// GPUs of the ranks of a node, and the processors of its host.
struct OpenGpus {
    gpus: Vec<Gpu>,
    cpus: CpuNodes,
}

impl DeviceHandles for OpenGpus {
    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        let free_bytes = self.gpus.iter().map(Gpu::free_bytes).collect::<Result<Vec<_>, _>>();
        Ok(free_bytes.map_err(Error::compute("ask a GPU for its memory"))?.into_iter().min())
    }

    fn kernels(&self) -> String {
        self.gpus.first().map_or_else(String::new, Gpu::name)
    }

    fn limits(&self) -> Result<Result<Limits, TooLittleMemory>, Error> {
        // They are of one kind: the first stands for all of them, and there is one.
        let limits = self.gpus[0].limits().map_err(Error::compute("measure a GPU's limits"))?;
        Ok(Ok(limits.times(self.gpus.len() * self.cpus.nodes)))
    }

    fn ready(self: Box<Self>, limits: &EngineLimits, shape: AttentionShape) -> Result<Box<dyn NodeDevices>, Error> {
        let Self { gpus, cpus } = *self;
        // Hosts of GPUs do little: one pool serves all of them.
        let host = Arc::new(Pool::with_isa(cpus.threads, cpus.isa));
        let device = |gpu: Gpu| {
            let gpu = gpu.for_steps(limits, shape).map_err(Error::compute("make room for steps"))?;
            Ok(Arc::new(GpuDevice::new(gpu, Arc::clone(&host))))
        };
        let gpus = gpus.into_iter().map(device).collect::<Result<Vec<_>, Error>>()?;
        let ranks = gpus.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
        Ok(Box::new(GpuRanks { gpus, ranks, threads: host.threads() }))
    }
}

/// GPUs with room for steps.
struct GpuRanks {
    gpus: Vec<Arc<GpuDevice>>,
    /// The same as the engine sees them.
    ranks: Vec<Arc<dyn Device>>,
    threads: usize,
}

impl NodeDevices for GpuRanks {
    fn ranks(&self) -> &[Arc<dyn Device>] {
        &self.ranks
    }

    /// The first one: it has all logits.
    fn sampling(&self) -> Arc<dyn Device> {
        Arc::clone(&self.ranks[0])
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn connect(&self, world: &World, rows: usize, vocabulary: &Arc<[usize]>) -> Result<Connected, Error> {
        let group = NcclGroup::connect(world)?;
        let widest = vocabulary.first().copied().unwrap_or(0);
        let member = |(index, device): (usize, &Arc<GpuDevice>)| -> candle_core::Result<Box<dyn Communicator>> {
            Ok(Box::new(NcclCommunicator::new(&group, index, device.gpu(), rows, widest)?))
        };
        let communicators = self.gpus.iter().enumerate().map(member).collect::<candle_core::Result<_>>();
        let communicators = communicators.map_err(Error::compute("make room for logits"))?;
        Ok(Connected { communicators, group: Some(group) })
    }
}

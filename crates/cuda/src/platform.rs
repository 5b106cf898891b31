//! The GPUs that this process sees as a platform: each rank has one, with a memory of its own.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::device::GpuDevice;
use super::driver::{check_gpus, least_memory_bytes, visible_gpus};
use super::gpu::Gpu;
use super::nccl::{NcclCommunicator, NcclGroup};
use super::row_tiles::ROW_TILE;
use super::{known_answer, known_sum};
use flashjob_config::Quantization;
use flashjob_cpu::{AttentionShape, Isa, Limits, Pool, TooLittleMemory};
use flashjob_engine::{
    CacheOrder, Communicator, Connected, CpuNodes, Determinism, Device, DeviceHandles, EngineLimits, Error, Installed,
    NodeDevices, Platform, World,
};
use flashjob_model::{Dtype, Model, WeightsFormat};

/// Free memory from which steps have 16,384 tokens, as vLLM's offline default has them on GPUs of 70 GiB or more: a group of 64
/// prompts, a sixteenth of 1024 places, is then one step. Their activations take 2.3 GB with Llama-3.1-8B.
const LARGE_MEMORY_BYTES: u64 = 64 << 30;

/// The GPUs that this process sees, one a rank.
#[derive(Clone, Copy, Debug)]
pub struct Cuda;

impl Platform for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    /// Memory as it is installed: what is free shows only once a context has taken some of it.
    fn installed(&self) -> Installed {
        Installed { count: visible_gpus().unwrap_or(1), memory_bytes: least_memory_bytes() }
    }

    fn max_num_batched_tokens(&self, free_bytes: Option<u64>) -> usize {
        match free_bytes {
            Some(bytes) if bytes >= LARGE_MEMORY_BYTES => 16_384,
            _ => 8192,
        }
    }

    fn max_num_seqs(&self) -> RangeInclusive<usize> {
        256..=1024
    }

    fn cache_order(&self, _isa: Isa) -> CacheOrder {
        CacheOrder::Tokens
    }

    /// Dequantised: cuBLAS multiplies plain numbers.
    fn weights_format(&self, _model: &Model, dtype: Dtype, _quantization: Quantization) -> WeightsFormat {
        WeightsFormat { dtype, keeps_blocks: false }
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

    fn determinism(&self) -> Determinism {
        // Of two numbers the sum is the same in either order. Of more, NCCL's order depends on the length of a message and on the place in it.
        Determinism::OnRequest { row_multiple: ROW_TILE, most_ranks: 2 }
    }

    fn open(
        &self,
        ranks: usize,
        cpus: CpuNodes,
        dtype: Dtype,
        deterministic: bool,
    ) -> Result<Box<dyn DeviceHandles>, Error> {
        if dtype == Dtype::F32 {
            return Err(Error::Setting(
                "flash attention takes numbers of 16 bits: with device=cuda set dtype to float16 or bfloat16"
                    .to_owned(),
            ));
        }
        // The job has asked for fewer where the number of ranks follows from the model.
        check_gpus(ranks).map_err(Error::Setting)?;
        let gpus = (0..ranks).map(|rank| Gpu::open(rank, dtype, deterministic)).collect::<Result<Vec<_>, _>>();
        let gpus = gpus.map_err(Error::compute("open a GPU"))?;
        let first = gpus.first().map_or_else(String::new, Gpu::name);
        match gpus.iter().map(Gpu::name).find(|other| *other != first) {
            None => Ok(Box::new(OpenGpus { gpus, cpus })),
            Some(other) => Err(Error::Setting(format!(
                "{ranks} ranks on a machine (tensor-parallel-size, data-parallel-size) need GPUs of one kind, as all wait for the slowest: \
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
        // One after the other: each is measured with the host for itself, as it has it in a long step.
        let limits = self.gpus.iter().map(Gpu::limits).collect::<candle_core::Result<Vec<_>>>();
        let limits = limits.map_err(Error::compute("measure a GPU's limits"))?;
        Ok(Ok(limits.into_iter().sum::<Limits>().times(self.cpus.nodes)))
    }

    fn ready(
        self: Box<Self>,
        limits: &EngineLimits,
        shape: AttentionShape,
        engines: usize,
    ) -> Result<Vec<Box<dyn NodeDevices>>, Error> {
        let Self { gpus, cpus } = *self;
        let of_each = gpus.len() / engines;
        let mut gpus = gpus.into_iter();
        let ready = |_| -> Result<Box<dyn NodeDevices>, Error> {
            // Hosts of GPUs do little: one pool serves all ranks of an engine.
            let host = Arc::new(Pool::with_isa((cpus.threads / engines).max(1), cpus.isa));
            let device = |gpu: Gpu| {
                let gpu = gpu.for_steps(limits, shape).map_err(Error::compute("make room for steps"))?;
                Ok(Arc::new(GpuDevice::new(gpu, Arc::clone(&host))))
            };
            let gpus = gpus.by_ref().take(of_each).map(device).collect::<Result<Vec<_>, Error>>()?;
            let check = |gpu: &Arc<GpuDevice>| known_answer::check(gpu, gpu.gpu().ordinal(), limits, shape);
            gpus.iter().try_for_each(check)?;
            let ranks = gpus.iter().map(|device| Arc::clone(device) as Arc<dyn Device>).collect();
            Ok(Box::new(GpuRanks { gpus, ranks, threads: host.threads() }))
        };
        (0..engines).map(ready).collect()
    }
}

/// GPUs of an engine with room for steps.
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
        let ordinals: Vec<usize> = self.gpus.iter().map(|device| device.gpu().ordinal()).collect();
        let group = NcclGroup::connect(world, &ordinals)?;
        known_sum::check(&group, &self.gpus, world)?;
        let widest = vocabulary.first().copied().unwrap_or(0);
        let member = |(index, device): (usize, &Arc<GpuDevice>)| -> candle_core::Result<Box<dyn Communicator>> {
            Ok(Box::new(NcclCommunicator::new(&group, index, device.gpu(), rows, widest)?))
        };
        let communicators = self.gpus.iter().enumerate().map(member).collect::<candle_core::Result<_>>();
        let communicators = communicators.map_err(Error::compute("make room for logits"))?;
        Ok(Connected { communicators, group: Some(group) })
    }
}

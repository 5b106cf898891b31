//! Where an engine computes, and what differs there: defaults, formats, free memory, and what a rank computes with.

use std::sync::Arc;

use crate::error::Error;
use crate::forward::batch::StepExtent;
use crate::forward::device::Processor;
use crate::forward::kv_cache::CacheOrder;
use crate::start::roofline::Processors;
use flashjob_cpu::{Isa, Limits, Pool, TooLittleMemory};
use flashjob_host::cgroup::free_memory_bytes;
use flashjob_model::{DecoderConfig, Dtype, Model};
#[cfg(feature = "cuda")]
use flashjob_model::{Shard, ShardShape};

/// Sequences that run at a time, unless configured: on a CPU, products gain no more speed from more rows; a GPU's cache seldom
/// holds more.
pub(crate) const MAX_NUM_SEQS: usize = 256;

/// Where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The processors of a machine. Ranks are threads that share its memory.
    Cpu,
    /// The GPUs that this process sees, one a rank.
    Gpus,
}

impl Placement {
    /// As results name it.
    pub fn name(self) -> &'static str {
        match self {
            Placement::Cpu => "cpu",
            Placement::Gpus => "cuda",
        }
    }

    /// Ranks, unless configured: all GPUs that the model can be split over evenly, as many on each of `machines`.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "a CPU is one rank"))]
    pub(crate) fn ranks(self, config: &DecoderConfig, machines: usize) -> usize {
        match self {
            Placement::Cpu => machines,
            #[cfg(feature = "cuda")]
            Placement::Gpus => {
                let visible = crate::cuda::driver::visible_gpus().unwrap_or(1);
                let suits = |each: &usize| {
                    let world_size = each * machines;
                    let shard = |rank| ShardShape::new(config, Shard { rank, world_size });
                    shard(0).and_then(|_| shard(world_size - 1)).is_ok()
                };
                (1..=visible).rev().find(suits).unwrap_or(1) * machines
            }
            #[cfg(not(feature = "cuda"))]
            Placement::Gpus => machines,
        }
    }

    /// Tokens in one step, unless configured: large enough for products at full speed.
    pub(crate) fn max_num_batched_tokens(self) -> usize {
        match self {
            Placement::Cpu => 2048,
            Placement::Gpus => 8192,
        }
    }

    /// Layout of keys and values, for CPU kernels of `isa`.
    pub(crate) fn cache_order(self, isa: Isa) -> CacheOrder {
        match self {
            Placement::Cpu => CacheOrder::Panels(isa),
            Placement::Gpus => CacheOrder::Tokens,
        }
    }

    /// How the weights of `model` are kept for arithmetic in `dtype`.
    pub(crate) fn weights_dtype(self, model: &Model, dtype: Dtype) -> Dtype {
        match self {
            Placement::Cpu => model.weights.kept_as(dtype),
            Placement::Gpus => dtype,
        }
    }

    /// Number format of activations, but for the residual stream and the logits.
    pub(crate) fn activations(self, dtype: Dtype) -> Dtype {
        match self {
            Placement::Cpu => Dtype::F32,
            Placement::Gpus => dtype,
        }
    }

    /// CPU threads that compute.
    pub(crate) fn threads(self, processors: &[Arc<Processor>]) -> usize {
        match self {
            Placement::Cpu => processors.iter().map(|processor| processor.pool().threads()).sum(),
            // One pool serves all.
            Placement::Gpus => processors.first().map_or(0, |processor| processor.pool().threads()),
        }
    }

    /// Whether steps of decoding are recorded and replayed, unless that is forbidden.
    pub(crate) fn replays(self) -> bool {
        self == Placement::Gpus
    }

    /// How many of a machine's `ranks` live in one memory.
    pub(crate) fn ranks_in_a_memory(self, ranks: usize) -> usize {
        match self {
            Placement::Cpu => ranks,
            Placement::Gpus => 1,
        }
    }

    /// Devices of a machine's `ranks`, before anything is loaded; `threads` are those of all of them together, and
    /// use `isa`.
    ///
    /// # Errors
    /// [`Error::Setting`] where a GPU cannot do what is asked of it, [`Error::Compute`] with what the driver says.
    pub(crate) fn open(self, ranks: usize, threads: usize, isa: Isa, dtype: Dtype) -> Result<Vec<Open>, Error> {
        match self {
            // As many threads as there are ranks at least; no more than asked for where those are enough.
            Placement::Cpu => {
                let pool = || Arc::new(Pool::with_isa((threads / ranks).max(1), isa));
                Ok((0..ranks).map(|_| Open::Cpu(pool())).collect())
            }
            Placement::Gpus if dtype == Dtype::F32 => Err(Error::Setting(
                "flash attention takes numbers of 16 bits: with device=cuda set dtype to float16 or bfloat16"
                    .to_owned(),
            )),
            #[cfg(feature = "cuda")]
            Placement::Gpus => {
                let open = |rank| crate::cuda::gpu::Gpu::open(rank, dtype).map(|gpu| Open::Gpu(Box::new(gpu)));
                let open: Vec<_> =
                    (0..ranks).map(open).collect::<Result<_, _>>().map_err(Error::compute("open a GPU"))?;
                let first = open[0].kernels();
                match open.iter().map(Open::kernels).find(|other| *other != first) {
                    None => Ok(open),
                    Some(other) => Err(Error::Setting(format!(
                        "tensor-parallel-size: {ranks} ranks on a machine need GPUs of one kind, as all wait for the slowest: \
                         here are {first} and {other}; choose among them with CUDA_VISIBLE_DEVICES"
                    ))),
                }
            }
            #[cfg(not(feature = "cuda"))]
            Placement::Gpus => Err(Error::Setting("this binary was built without the feature `cuda`".to_owned())),
        }
    }
}

/// What one rank computes with, before the size of a step is known.
pub(crate) enum Open {
    Cpu(Arc<Pool>),
    #[cfg(feature = "cuda")]
    Gpu(Box<crate::cuda::gpu::Gpu>),
}

impl Open {
    /// Bytes that may still be allocated where this rank computes; `None` where the system does not say.
    pub(crate) fn free_bytes(&self) -> Result<Option<u64>, Error> {
        match self {
            Open::Cpu(_) => Ok(free_memory_bytes()),
            #[cfg(feature = "cuda")]
            Open::Gpu(gpu) => gpu.free_bytes().map(Some).map_err(Error::compute("ask a GPU for its memory")),
        }
    }

    /// Limits of all machines together, each with as many `ranks` of this kind, or why that cannot be measured;
    /// `processors` are those that ranks on a CPU share.
    ///
    /// # Errors
    /// What a GPU says.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "ranks on a CPU share what is measured once"))]
    pub(crate) fn limits(
        &self,
        ranks: usize,
        processors: Processors,
    ) -> Result<Result<Limits, TooLittleMemory>, Error> {
        match self {
            Open::Cpu(_) => Ok(processors.limits()),
            #[cfg(feature = "cuda")]
            Open::Gpu(gpu) => {
                let limits = gpu.limits().map_err(Error::compute("measure a GPU's limits"))?;
                Ok(Ok(limits.times(ranks * processors.machines)))
            }
        }
    }

    /// As results name what computes.
    pub(crate) fn kernels(&self) -> String {
        match self {
            Open::Cpu(pool) => pool.isa().name().to_owned(),
            #[cfg(feature = "cuda")]
            Open::Gpu(gpu) => gpu.name(),
        }
    }

    /// For steps of up to `extent`. Hosts of GPUs do little: one pool serves all of them.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "a CPU computes steps of any size"))]
    pub(crate) fn ready(self, extent: StepExtent, host: &Arc<Pool>) -> Result<Arc<Processor>, Error> {
        match self {
            Open::Cpu(pool) => Ok(Arc::new(Processor::cpu(pool))),
            #[cfg(feature = "cuda")]
            Open::Gpu(gpu) => {
                let gpu = gpu.for_steps(extent).map_err(Error::compute("make room for steps"))?;
                Ok(Arc::new(Processor::cuda(gpu, Arc::clone(host))))
            }
        }
    }
}

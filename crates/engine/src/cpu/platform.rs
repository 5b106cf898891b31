//! The processors of a node as a platform: ranks are threads, and one memory holds what all of them need.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::device::CpuDevice;
use crate::device::Device;
use crate::device::platform::{DeviceHandles, Installed, NodeDevices, Platform};
use crate::error::Error;
use crate::forward::kv_cache::CacheOrder;
use crate::parallel::communicator::{Communicator, Connected};
use crate::parallel::host_communicator::{HostCommunicator, HostGroup};
use crate::parallel::world::World;
use crate::schedule::limits::EngineLimits;
use crate::start::roofline::CpuNodes;
use flashjob_config::Quantization;
use flashjob_cpu::{AttentionShape, Isa, Limits, Pool, TooLittleMemory};
use flashjob_host::cgroup::free_memory_bytes;
use flashjob_model::{Dtype, Model, WeightsFormat};

/// The processors of a node.
#[derive(Clone, Copy, Debug)]
pub struct Cpu;

impl Platform for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    /// One, although processors are many: threads of one pool share what they read of the weights.
    fn installed(&self) -> Installed {
        Installed { count: 1, memory_bytes: None }
    }

    fn max_num_batched_tokens(&self, _free_bytes: Option<u64>) -> usize {
        2048
    }

    fn max_num_seqs(&self) -> RangeInclusive<usize> {
        // Products gain no more speed from more rows.
        256..=256
    }

    fn cache_order(&self, isa: Isa) -> CacheOrder {
        CacheOrder::Panels(isa)
    }

    fn weights_format(&self, model: &Model, dtype: Dtype, quantization: Quantization) -> WeightsFormat {
        WeightsFormat { dtype: model.weights.kept_as(dtype), keeps_blocks: quantization == Quantization::Auto }
    }

    fn activations(&self, _dtype: Dtype) -> Dtype {
        Dtype::F32
    }

    fn ranks_share_memory(&self) -> bool {
        true
    }

    fn limits_again(&self, cpus: CpuNodes) -> Option<Limits> {
        cpus.limits().ok()
    }

    fn open(
        &self,
        ranks: usize,
        cpus: CpuNodes,
        _dtype: Dtype,
        _deterministic: bool,
    ) -> Result<Box<dyn DeviceHandles>, Error> {
        // As many threads as there are ranks at least; no more than asked for where those are enough.
        let pool = || Arc::new(Pool::with_isa((cpus.threads / ranks).max(1), cpus.isa));
        Ok(Box::new(CpuHandles { pools: (0..ranks).map(|_| pool()).collect(), cpus }))
    }
}

/// Threads of the ranks of a node.
struct CpuHandles {
    pools: Vec<Arc<Pool>>,
    cpus: CpuNodes,
}

impl DeviceHandles for CpuHandles {
    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        Ok(free_memory_bytes())
    }

    fn kernels(&self) -> String {
        self.cpus.isa.name().to_owned()
    }

    fn limits(&self) -> Result<Result<Limits, TooLittleMemory>, Error> {
        Ok(self.cpus.limits())
    }

    /// A pool computes steps of any size.
    fn ready(
        self: Box<Self>,
        _limits: &EngineLimits,
        _shape: AttentionShape,
        engines: usize,
    ) -> Result<Vec<Box<dyn NodeDevices>>, Error> {
        let Self { pools, cpus } = *self;
        let device = |pool: &Arc<Pool>| Arc::new(CpuDevice::new(Arc::clone(pool))) as Arc<dyn Device>;
        let ranks = |pools: &[Arc<Pool>]| -> Box<dyn NodeDevices> {
            // Ranks are at rest when tokens are chosen: a single one's threads do that, too.
            let sampling = match pools {
                [pool] => Arc::clone(pool),
                _ => Arc::new(Pool::with_isa((cpus.threads / engines).max(1), cpus.isa)),
            };
            Box::new(CpuRanks { sampling: device(&sampling), ranks: pools.iter().map(device).collect() })
        };
        Ok(pools.chunks(pools.len() / engines).map(ranks).collect())
    }
}

/// The ranks of an engine, and all of its threads for choosing tokens.
struct CpuRanks {
    ranks: Vec<Arc<dyn Device>>,
    sampling: Arc<dyn Device>,
}

impl NodeDevices for CpuRanks {
    fn ranks(&self) -> &[Arc<dyn Device>] {
        &self.ranks
    }

    fn sampling(&self) -> Arc<dyn Device> {
        Arc::clone(&self.sampling)
    }

    fn threads(&self) -> usize {
        self.ranks.iter().map(|device| device.pool().threads()).sum()
    }

    fn connect(&self, world: &World, _rows: usize, vocabulary: &Arc<[usize]>) -> Result<Connected, Error> {
        // Ranks share memory: a sum is an addition there, and copies over a socket are left to connections between nodes.
        let group = HostGroup::new(world);
        let member = |index| Box::new(HostCommunicator::new(&group, index, vocabulary)) as Box<dyn Communicator>;
        Ok(Connected { communicators: (0..self.ranks.len()).map(member).collect(), group: Some(group) })
    }
}

//! A kind of devices: defaults and formats that differ between kinds, and the way from nothing to the devices of a node's ranks.
//!
//! A platform decides before a device is open; open devices say how much memory they have; once the size of a step is known, they
//! are given room for it.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::Device;
use crate::error::Error;
use crate::forward::kv_cache::CacheOrder;
use crate::parallel::communicator::Connected;
use crate::parallel::world::World;
use crate::schedule::limits::EngineLimits;
use crate::start::roofline::CpuNodes;
use flashjob_config::Quantization;
use flashjob_cpu::{AttentionShape, Isa, Limits, TooLittleMemory};
use flashjob_model::{Dtype, Model, WeightsFormat};

/// Requirements of tokens that do not depend on what else is in a request's batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Determinism {
    /// Nothing: they never do.
    Always,
    /// It is asked for when devices are opened.
    OnRequest {
        /// Products are computed of so many rows at a time, for which activations have room.
        row_multiple: usize,
        /// Ranks whose sums do not depend on where a number stands among others.
        most_ranks: usize,
    },
}

impl Determinism {
    /// Multiple of the rows of activations, where determinism is `asked` for.
    pub fn row_multiple(self, asked: bool) -> usize {
        match self {
            Determinism::OnRequest { row_multiple, .. } if asked => row_multiple,
            _ => 1,
        }
    }

    /// True where it holds, given what was `asked`.
    pub fn holds(self, asked: bool) -> bool {
        asked || self == Determinism::Always
    }
}

/// Kind of devices that an engine computes on.
pub trait Platform: fmt::Debug + Send + Sync {
    /// The platform as results name it.
    fn name(&self) -> &'static str;

    /// Devices of this node that engines and ranks take unless configured otherwise: one where they are threads.
    fn installed(&self) -> Installed;

    /// Tokens in one step, unless configured, on devices of which the fullest has `free_bytes`: large enough for products at full
    /// speed.
    fn max_num_batched_tokens(&self, free_bytes: Option<u64>) -> usize;

    /// Sequences in one step, unless configured: at least, and at most where the cache has room for them.
    fn max_num_seqs(&self) -> RangeInclusive<usize>;

    /// Order of keys and values in a block, for CPU kernels of `isa` where those compute.
    fn cache_order(&self, isa: Isa) -> CacheOrder;

    /// Format in which the weights of `model` are kept for arithmetic in `dtype`.
    fn weights_format(&self, model: &Model, dtype: Dtype, quantization: Quantization) -> WeightsFormat;

    /// Number format of activations, but for the residual stream and the logits.
    fn activations(&self, dtype: Dtype) -> Dtype;

    /// True where the ranks of a node live in one memory.
    fn ranks_share_memory(&self) -> bool;

    /// Requirements of batch invariance on this platform's devices.
    fn determinism(&self) -> Determinism {
        Determinism::Always
    }

    /// True where steps of decoding are recorded and replayed, unless that is forbidden.
    fn replays(&self) -> bool {
        false
    }

    /// True where only computing shows how much memory it takes: the cache is then sized after the largest step.
    fn profiles(&self) -> bool {
        false
    }

    /// GPUs that each rank computes on.
    fn gpus_per_rank(&self) -> usize {
        0
    }

    /// Measures the limits of all nodes together once more, after a run, where that can give a better figure.
    fn limits_again(&self, _cpus: CpuNodes) -> Option<Limits> {
        None
    }

    /// Opens the devices of a node's `ranks`, those of all engines; the threads of `cpus` are those of all of them together.
    ///
    /// # Errors
    /// [`Error::Setting`] where a device cannot do what is asked of it, [`Error::Compute`] with what the driver says.
    fn open(
        &self,
        ranks: usize,
        cpus: CpuNodes,
        dtype: Dtype,
        deterministic: bool,
    ) -> Result<Box<dyn DeviceHandles>, Error>;
}

/// Devices of a node before one of them is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Number of devices.
    pub count: usize,
    /// Memory of the one that has least, used or not; `None` where that decides nothing, or the system does not say.
    pub memory_bytes: Option<u64>,
}

/// Devices of a node's ranks, before the size of a step is known.
pub trait DeviceHandles {
    /// Bytes that may still be allocated where least are free; `None` where the system does not say.
    ///
    /// # Errors
    /// [`Error::Compute`] with what the driver says.
    fn free_bytes(&self) -> Result<Option<u64>, Error>;

    /// Name in results of what computes.
    fn kernels(&self) -> String;

    /// Limits of all of these devices and of all nodes together, each with devices like these, or why that cannot be measured.
    ///
    /// # Errors
    /// [`Error::Compute`] with what the driver says.
    fn limits(&self) -> Result<Result<Limits, TooLittleMemory>, Error>;

    /// Devices with room for steps within `limits`, on ranks of `shape`, divided evenly among so many `engines`.
    ///
    /// # Errors
    /// [`Error::Compute`]: there is no memory for it.
    fn ready(
        self: Box<Self>,
        limits: &EngineLimits,
        shape: AttentionShape,
        engines: usize,
    ) -> Result<Vec<Box<dyn NodeDevices>>, Error>;
}

/// Devices of one engine's ranks on a node, ready for steps.
pub trait NodeDevices {
    /// By rank, those here.
    fn ranks(&self) -> &[Arc<dyn Device>];

    /// The device that chooses tokens.
    fn sampling(&self) -> Arc<dyn Device>;

    /// CPU threads that compute.
    fn threads(&self) -> usize;

    /// Connects all ranks of `world`, which are several. At most `rows` rows are gathered of `vocabulary`, whose widths are by rank.
    ///
    /// # Errors
    /// [`Error::Setting`] where a library does not start, [`Error::Compute`] where there is no memory for parts, and
    /// [`Error::Machines`].
    fn connect(&self, world: &World, rows: usize, vocabulary: &Arc<[usize]>) -> Result<Connected, Error>;
}

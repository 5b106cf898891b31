//! The configuration that an engine decided on, as results state it.

use crate::cost::Cost;
use crate::start::step_size::LimitReasons;
use flashjob_config::Schedule;
use flashjob_cpu::Limits;

/// Decisions and costs of this engine, `candle` in results, as results state them.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct CandleReport {
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Number format of the KV cache; weights are numbers of this format, too.
    pub dtype: &'static str,
    /// Number format of weights in memory: narrower than `dtype` where that loses nothing.
    pub weights_dtype: String,
    /// Instruction set that the kernels use, or the GPU's name and compute capability.
    pub kernels: String,
    /// CPU threads that compute, on all nodes together.
    pub threads: usize,
    /// Engines that each hold the whole model.
    pub data_parallel_size: usize,
    /// Ranks of each engine, on all nodes together.
    pub tensor_parallel_size: usize,
    /// Nodes that share the model.
    #[serde(rename = "machines")]
    pub num_nodes: usize,
    /// Blocks in the KV caches of all engines.
    pub kv_blocks: usize,
    /// Tokens a block holds.
    #[serde(rename = "block_tokens")]
    pub block_size: usize,
    /// Size of all KV caches.
    pub kv_cache_bytes: u64,
    /// Longest prompt plus output that is served.
    pub max_model_len: usize,
    /// Sequences in one step of an engine at most.
    pub max_num_seqs: usize,
    /// Tokens in one step of an engine at most.
    pub max_num_batched_tokens: usize,
    /// Causes of these two.
    pub limit_reasons: LimitReasons,
    /// Limits of all devices together; `None` where it was not to be measured, or could not be.
    pub limits: Option<Limits>,
    /// The reason where they could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits_not_measured: Option<String>,
    /// Within a run, keys and values of equal beginnings are computed once.
    pub prefix_caching: bool,
    /// Order in which waiting requests are run.
    pub schedule: Schedule,
    /// Steps of decoding are recorded as CUDA graphs and replayed.
    pub cuda_graphs: bool,
    /// A step is queued before the tokens of the one before it are read.
    pub async_scheduling: bool,
    /// Tokens of a request do not depend on what else is in its batch: always so on a CPU.
    pub deterministic: bool,
    /// Operations and bytes of an engine's steps.
    pub cost: Cost,
}

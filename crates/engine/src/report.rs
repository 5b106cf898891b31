//! The configuration that an engine decided on, as results state it.

use crate::cost::Cost;
use flashjob_cpu::Limits;

/// Decisions and costs of this engine, `candle` in results, as results state them.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct CandleReport {
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Number format of the KV cache; weights are numbers of this format, too.
    pub dtype: &'static str,
    /// Number format of weights in memory: narrower than `dtype` where that loses nothing.
    pub weights_dtype: &'static str,
    /// Instruction set that the kernels use, or the GPU's name and compute capability.
    pub kernels: String,
    /// CPU threads that compute, on all nodes together.
    pub threads: usize,
    /// Ranks, on all nodes together.
    pub tensor_parallel_size: usize,
    /// Nodes that share the model.
    #[serde(rename = "machines")]
    pub num_nodes: usize,
    /// Blocks in the KV cache.
    pub kv_blocks: usize,
    /// Tokens a block holds.
    #[serde(rename = "block_tokens")]
    pub block_size: usize,
    /// Size of the KV cache.
    pub kv_cache_bytes: u64,
    /// Longest prompt plus output that is served.
    pub max_model_len: usize,
    /// Sequences in one step at most.
    pub max_num_seqs: usize,
    /// Tokens in one step at most.
    pub max_num_batched_tokens: usize,
    /// Limits of the devices; `None` where it was not to be measured, or could not be.
    pub limits: Option<Limits>,
    /// The reason where they could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits_not_measured: Option<String>,
    /// Within a run, keys and values of equal beginnings are computed once.
    pub prefix_caching: bool,
    /// Steps of decoding are recorded as CUDA graphs and replayed.
    pub cuda_graphs: bool,
    /// Operations and bytes of steps.
    pub cost: Cost,
}

//! The configuration that an engine decided on, as results state it.

use crate::cost::Cost;
use flashjob_cpu::Limits;

/// How an engine stands, as it is stated in results.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct EngineFacts {
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Number format of the KV cache; weights are numbers of this format, too.
    pub dtype: &'static str,
    /// How weights are kept: narrower than `dtype` where that loses nothing.
    pub weights_dtype: &'static str,
    /// Instruction set that the kernels use, or the GPU's name and compute capability.
    pub kernels: String,
    /// CPU threads that compute, on all machines together.
    pub threads: usize,
    /// Ranks, on all machines together.
    pub tensor_parallel_size: usize,
    /// Machines that share the model.
    pub machines: usize,
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
    /// What the processors can do at most; `None` where it was not to be measured, or could not be.
    pub limits: Option<Limits>,
    /// Why they could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits_not_measured: Option<String>,
    /// Within a run, keys and values of equal beginnings are computed once.
    pub prefix_caching: bool,
    /// Steps of decoding are recorded as CUDA graphs and replayed.
    pub cuda_graphs: bool,
    /// What computing costs.
    pub cost: Cost,
}

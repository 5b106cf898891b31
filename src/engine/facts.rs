//! What an engine decided and what its work costs, for results and for the roofline.

use super::decoder::DecoderWeights;
use crate::model::DecoderConfig;

/// How an engine stands, as it is stated in results.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct EngineFacts {
    /// `cpu`.
    pub device: &'static str,
    /// Number format of weights and KV cache.
    pub dtype: &'static str,
    /// Instruction set that the kernels use.
    pub kernels: &'static str,
    /// CPU threads that compute.
    pub threads: usize,
    /// Ranks.
    pub tensor_parallel_size: usize,
    /// Blocks in the KV cache.
    pub kv_blocks: usize,
    /// Tokens a block holds.
    pub block_tokens: usize,
    /// Size of the KV cache.
    pub kv_cache_bytes: u64,
    /// Longest prompt plus output that is served.
    pub max_model_len: usize,
    /// Sequences in one step at most.
    pub max_num_seqs: usize,
    /// Tokens in one step at most.
    pub max_num_batched_tokens: usize,
    /// Within a run, keys and values of equal beginnings are computed once.
    pub prefix_caching: bool,
    /// What computing costs.
    pub cost: Cost,
}

/// Arithmetic and traffic of a forward pass: what a roofline needs to know. A multiply-add counts as two operations;
/// norms, rotation and activations are left out, being less than a hundredth. Tokens are those that steps compute: what is
/// found in the prefix cache costs none of it, so the lengths of prompts do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Operations for each token in all layers, attention left out.
    pub flops_per_token: u64,
    /// Operations for each pair of a query and a key that it sees, in all layers.
    pub flops_per_query_and_key: u64,
    /// Operations for each row of logits.
    pub flops_per_logits_row: u64,
    /// Packed weights in all.
    pub weight_bytes: u64,
    /// Weights that each step reads whatever its size, without the head.
    pub layer_weight_bytes: u64,
    /// Weights that each step with logits reads besides.
    pub head_weight_bytes: u64,
    /// Keys and values of one token in all layers: written once, read by each later token of the sequence.
    pub kv_bytes_per_token: u64,
}

impl Cost {
    pub(super) fn new(config: &DecoderConfig, weights: &DecoderWeights, kv_bytes_per_token: u64) -> Self {
        let DecoderConfig { hidden_size, intermediate_size, heads, kv_heads, head_dim, layers, vocab_size, .. } =
            config;
        let attention = hidden_size * head_dim * (2 * heads + 2 * kv_heads);
        let layer = attention + 3 * hidden_size * intermediate_size;
        let layer_weight_bytes: u64 = weights
            .layers
            .iter()
            .map(|layer| layer.qkv.bytes() + layer.o.bytes() + layer.gate_up.bytes() + layer.down.bytes())
            .sum();
        let head_weight_bytes = weights.head.bytes();
        let embedding_bytes = if config.tied_head { 0 } else { weights.embedding.bytes() };
        Self {
            flops_per_token: (2 * layers * layer) as u64,
            flops_per_query_and_key: (4 * layers * heads * head_dim) as u64,
            flops_per_logits_row: (2 * vocab_size * hidden_size) as u64,
            weight_bytes: layer_weight_bytes + head_weight_bytes + embedding_bytes,
            layer_weight_bytes,
            head_weight_bytes,
            kv_bytes_per_token,
        }
    }
}

//! What a job says of the engine: which, where, on which model, set up how.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::InputStorage;
use super::error::ConfigError;
use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;

/// The engines a job can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// Ours.
    Candle,
    /// vLLM as a child process, in images that have it.
    Vllm,
    /// SGLang as a child process, in images that have it.
    Sglang,
}

/// Where the candle backend runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// CUDA where this build and this machine have it, the CPU otherwise; the log says which and why.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA or an error.
    Cuda,
}

/// A model as it was named: joined to a mount location unless absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPath(pub PathBuf);

/// Where the platform puts models unless told otherwise.
const DEFAULT_LOCATION: &str = "/models";

impl ModelPath {
    /// The places to look at, in order: the path itself where it is absolute; else under each mount location,
    /// or, where nothing is mounted, under `/models` and then under the working directory.
    pub fn candidates(&self, inputs: &[InputStorage]) -> Vec<PathBuf> {
        if self.0.is_absolute() {
            return vec![self.0.clone()];
        }
        match inputs {
            [] => vec![Path::new(DEFAULT_LOCATION).join(&self.0), self.0.clone()],
            inputs => inputs.iter().map(|input| input.location.join(&self.0)).collect(),
        }
    }
}

/// How the engine is set up; names are vLLM's where vLLM has the setting.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Ranks; `None`: all visible GPUs, 1 on the CPU.
    pub tensor_parallel_size: Option<NonZeroUsize>,
    /// Longest prompt plus output; `None`: the model's.
    pub max_model_len: Option<NonZeroUsize>,
    /// Number format of weights and KV cache.
    pub dtype: DtypeChoice,
    /// Share of free device memory that weights, activations and KV cache may take. Default 0.9.
    pub memory_utilization: f64,
    /// Bytes for the KV cache; `None`: what `memory_utilization` leaves.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Sequences in one step at most; `None`: best for the device.
    pub max_num_seqs: Option<NonZeroUsize>,
    /// Tokens in one step at most; `None`: best for the device.
    pub max_num_batched_tokens: Option<NonZeroUsize>,
    /// Tokens in a KV block, a multiple of 32. Default 32.
    pub block_tokens: NonZeroUsize,
    /// CPU threads; `None`: the container's CPU quota.
    pub threads: Option<NonZeroUsize>,
    /// Look for NaN and infinities in the weights while loading.
    pub validate_weights: bool,
}

/// `dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// The checkpoint's.
    Auto,
    /// `float16`, `half`.
    Float16,
    /// `bfloat16`.
    Bfloat16,
    /// `float32`, `float`.
    Float32,
}

/// KV blocks are a multiple of this, the smallest page of the attention kernels.
const BLOCK_MULTIPLE: usize = 32;

/// Reads how the engine is set up. `None`: an error was noted.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<EngineConfig> {
    let show_count = |count: &NonZeroUsize| count.to_string();
    let tensor_parallel_size = resolver.read_open(&raw.tensor_parallel_size, parsing::count, show_count);
    let max_model_len = resolver.read_open(&raw.max_model_len, parsing::count, show_count);
    let dtype = resolver.choose(&raw.dtype);
    let memory_utilization = resolver.read(
        &raw.gpu_memory_utilization,
        |text| parsing::number(text, "a number above 0 and at most 1", |share| share > 0.0 && share <= 1.0),
        f64::to_string,
    );
    let kv_cache = resolver.read_open(&raw.kv_cache_memory, parsing::bytes, u64::to_string);
    let max_num_seqs = resolver.read_open(&raw.max_num_seqs, parsing::count, show_count);
    let max_num_batched_tokens = resolver.read_open(&raw.max_num_batched_tokens, parsing::count, show_count);
    let block_tokens = resolver.read(
        &raw.block_size,
        |text| {
            let count = parsing::count(text).ok().filter(|count| count.get().is_multiple_of(BLOCK_MULTIPLE));
            count.ok_or_else(|| format!("it must be a multiple of {BLOCK_MULTIPLE}"))
        },
        show_count,
    );
    let threads = resolver.read_open(&raw.threads, parsing::count, show_count);
    let validate_weights = resolver.read(&raw.validate_weights, parsing::boolean, bool::to_string);
    if let (Some(Some(tokens)), Some(Some(sequences))) = (max_num_batched_tokens, max_num_seqs)
        && tokens < sequences
    {
        resolver.errors.push(ConfigError::Together(format!(
            "max-num-batched-tokens is {tokens}, below max-num-seqs, which is {sequences}; each sequence needs a token in \
             a step, so raise the one or lower the other"
        )));
    }
    Some(EngineConfig {
        tensor_parallel_size: tensor_parallel_size?,
        max_model_len: max_model_len?,
        dtype: dtype?,
        memory_utilization: memory_utilization?,
        kv_cache_memory_bytes: kv_cache?,
        max_num_seqs: max_num_seqs?,
        max_num_batched_tokens: max_num_batched_tokens?,
        block_tokens: block_tokens?,
        threads: threads?,
        validate_weights: validate_weights?,
    })
}

//! Settings of the engine: backend, device, model, and limits.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::InputStorage;

/// The engines a job can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// The engine of this program.
    Candle,
    /// vLLM as a child process, in images that have it.
    Vllm,
    /// SGLang as a child process, in images that have it.
    Sglang,
}

/// Device of the candle backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// CUDA where this build and this machine have it, the CPU otherwise; an error where GPUs were given and cannot be used.
    Auto,
    /// The processors of this machine.
    Cpu,
    /// CUDA or an error.
    Cuda,
}

/// A model as it was named: joined to a mount location unless absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPath(pub PathBuf);

impl ModelPath {
    /// The places to look at, in order: the path itself where it is absolute; else under each mount location (under `/models`
    /// where nothing is mounted), and then in the working directory.
    pub fn candidates(&self, inputs: &[InputStorage]) -> Vec<PathBuf> {
        if self.0.is_absolute() {
            return vec![self.0.clone()];
        }
        let locations: Vec<&Path> = match inputs {
            [] => vec![Path::new(InputStorage::DEFAULT_LOCATION)],
            inputs => inputs.iter().map(|input| input.location.as_path()).collect(),
        };
        // Mounted files first: a name like `llama` may well be a folder of the working directory, too.
        locations.into_iter().chain([Path::new(".")]).map(|location| location.join(&self.0)).collect()
    }
}

/// Settings of the engine; names are vLLM's if vLLM has the setting.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Ranks of an engine; `None`: as few as leave room for a useful cache.
    pub tensor_parallel_size: Option<NonZeroUsize>,
    /// Engines that each hold the whole model and share the requests; `None`: as many as there are GPUs for, 1 on the CPU.
    pub data_parallel_size: Option<NonZeroUsize>,
    /// Longest prompt plus output; `None`: the model's.
    pub max_model_len: Option<NonZeroUsize>,
    /// Number format of weights that are not quantised and of the KV cache.
    pub dtype: DtypeChoice,
    /// Format of quantised weights in memory.
    pub quantization: Quantization,
    /// Share of free device memory that weights, activations and KV cache may take. Default 0.9.
    pub memory_utilization: f64,
    /// Bytes for the KV cache; `None`: what `memory_utilization` leaves.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Sequences in one step at most; `None`: best for the device.
    pub max_num_seqs: Option<NonZeroUsize>,
    /// Tokens in one step at most; `None`: best for the device.
    pub max_num_batched_tokens: Option<NonZeroUsize>,
    /// Compute keys and values of equal beginnings once in a run. Default true for a batch; a benchmark that reuses work measures less
    /// of it.
    pub prefix_caching: bool,
    /// Order in which waiting requests are run.
    pub schedule: Schedule,
    /// Launch every kernel of every step instead of replaying recorded steps; GPUs only.
    pub enforce_eager: bool,
    /// A request's tokens do not depend on what else is in its batch, on GPUs either.
    pub deterministic: bool,
    /// Tokens in a KV block, a multiple of 32. Default 32.
    pub block_tokens: NonZeroUsize,
    /// CPU threads; `None`: the container's CPU quota.
    pub threads: Option<NonZeroUsize>,
    /// Look for NaN and infinities in the weights while loading.
    pub validate_weights: bool,
    /// Measure the machine's limits, before weights are loaded and after the run.
    pub measure_limits: bool,
    /// Longest time that a step may take; `None`: derived from the steps before.
    pub step_timeout: Option<Duration>,
    /// Instruction set of the CPU kernels; `None`: the widest that the processor has.
    pub instruction_set: Option<InstructionSet>,
}

/// `quantization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// That of the checkpoint, where kernels have it.
    Auto,
    /// None: dequantised to `dtype`.
    None,
}

/// `schedule`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// That of the input.
    Input,
    /// Prompts that begin alike one after the other.
    Prefix,
    /// The longest, prompt and output together, first.
    Longest,
}

/// `FLASHJOB_ISA`: what the CPU kernels use of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// The build's baseline.
    Portable,
}

/// Values of the key `dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// The checkpoint's.
    Auto,
    /// `float16`, `half`.
    Float16,
    /// The format `bfloat16`.
    Bfloat16,
    /// `float32`, `float`.
    Float32,
}

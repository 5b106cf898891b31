//! Report of an engine on itself: device, number formats, kernels, blocks. Each engine has a type of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

use flashjob_engine::CandleReport;

/// Report of the engine that runs, as it stands in the log and in the result.
#[derive(Clone, Debug, Serialize)]
// The kind of engine stands beside the report already, as `backend`.
#[serde(untagged)]
pub enum EngineReport {
    /// Our own engine.
    Candle(Box<CandleReport>),
    /// An engine in a child process.
    Child(Box<ChildEngineReport>),
}

/// Configuration of an engine in a child process once it is loaded, as its driver reads it. `None` is what the engine itself leaves
/// open, or does not have.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChildEngineReport {
    /// `cpu`, `cuda`, `rocm` or another platform of the engine's.
    pub device: Option<String>,
    /// Product name of the device.
    pub device_name: Option<String>,
    /// Number format of activations.
    pub dtype: Option<String>,
    /// Method of quantisation.
    pub quantization: Option<String>,
    /// Number format of the KV cache.
    pub kv_cache_dtype: Option<String>,
    /// Attention backends of the layers, separated by commas.
    pub kernels: Option<String>,
    /// CPU threads of PyTorch.
    pub threads: Option<usize>,
    /// Engines that each hold the whole model.
    pub data_parallel_size: Option<usize>,
    /// Ranks that share a model.
    pub tensor_parallel_size: Option<usize>,
    /// Blocks in the KV cache.
    pub kv_blocks: Option<usize>,
    /// Tokens in a block.
    pub block_tokens: Option<usize>,
    /// Longest prompt plus output.
    pub max_model_len: Option<usize>,
    /// Most sequences in a step.
    pub max_num_seqs: Option<usize>,
    /// Most tokens in a step.
    pub max_num_batched_tokens: Option<usize>,
    /// Reuse of keys and values of equal beginnings.
    pub prefix_caching: Option<bool>,
    /// Kernels are launched one by one.
    pub enforce_eager: Option<bool>,
    /// Level of `torch.compile`.
    pub compilation_mode: Option<String>,
    /// Use of CUDA graphs.
    pub cuda_graphs: Option<String>,
    /// Kernels that sample, where they are chosen apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling_kernels: Option<String>,
    /// Arguments of its own that the user gave.
    pub arguments: serde_json::Map<String, serde_json::Value>,
}

impl EngineReport {
    /// Device that computes.
    pub fn device(&self) -> Option<&str> {
        match self {
            EngineReport::Candle(report) => Some(report.device),
            EngineReport::Child(report) => report.device.as_deref(),
        }
    }

    /// Number format of activations and of the KV cache.
    pub fn dtype(&self) -> Option<&str> {
        match self {
            EngineReport::Candle(report) => Some(report.dtype),
            EngineReport::Child(report) => report.dtype.as_deref(),
        }
    }

    /// Number format in which weights are kept; engines in a child process do not report one.
    pub fn weights_dtype(&self) -> Option<&str> {
        match self {
            EngineReport::Candle(report) => Some(&report.weights_dtype),
            EngineReport::Child(_) => None,
        }
    }

    /// Kernels in use.
    pub fn kernels(&self) -> Option<&str> {
        match self {
            EngineReport::Candle(report) => Some(&report.kernels),
            EngineReport::Child(report) => report.kernels.as_deref(),
        }
    }

    /// Engines that each hold the whole model and share the requests.
    pub fn engines(&self) -> usize {
        match self {
            EngineReport::Candle(report) => report.data_parallel_size,
            EngineReport::Child(report) => report.data_parallel_size.unwrap_or(1),
        }
    }

    /// Sequences in one step of an engine at most.
    pub fn max_num_seqs(&self) -> Option<usize> {
        match self {
            EngineReport::Candle(report) => Some(report.max_num_seqs),
            EngineReport::Child(report) => report.max_num_seqs,
        }
    }

    /// Blocks in the KV caches of all engines.
    pub fn kv_blocks(&self) -> Option<usize> {
        match self {
            EngineReport::Candle(report) => Some(report.kv_blocks),
            EngineReport::Child(report) => report.kv_blocks,
        }
    }

    /// Size of all KV caches; engines in a child process do not report one.
    pub fn kv_cache_bytes(&self) -> Option<u64> {
        match self {
            EngineReport::Candle(report) => Some(report.kv_cache_bytes),
            EngineReport::Child(_) => None,
        }
    }

    /// GPUs that compute, on all nodes together.
    pub fn gpus(&self) -> usize {
        match self {
            EngineReport::Candle(report) if report.device == "cuda" => {
                report.data_parallel_size * report.tensor_parallel_size
            }
            EngineReport::Child(report) if report.device.as_deref() == Some("cuda") => {
                self.engines() * report.tensor_parallel_size.unwrap_or(1)
            }
            EngineReport::Candle(_) | EngineReport::Child(_) => 0,
        }
    }

    /// Reason for which the machine's limits could not be measured, where that was tried.
    pub fn limits_not_measured(&self) -> Option<&str> {
        match self {
            EngineReport::Candle(report) => report.limits_not_measured.as_deref(),
            EngineReport::Child(_) => None,
        }
    }
}

/// One line of JSON, as in `result.json`.
impl fmt::Display for EngineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

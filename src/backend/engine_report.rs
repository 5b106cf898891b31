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
    /// vLLM in a child process.
    Vllm(Box<VllmReport>),
}

/// vLLM's configuration once it is loaded, as `driver.py` reads it. `None` is what vLLM itself leaves open.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VllmReport {
    /// `cpu`, `cuda`, `rocm` or another platform of vLLM's.
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
    /// Ranks that share the model.
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
}

impl EngineReport {
    /// Device that computes.
    pub fn device(&self) -> Option<&str> {
        match self {
            EngineReport::Candle(report) => Some(report.device),
            EngineReport::Vllm(report) => report.device.as_deref(),
        }
    }

    /// Number format of activations and of the KV cache.
    pub fn dtype(&self) -> Option<&str> {
        match self {
            EngineReport::Candle(report) => Some(report.dtype),
            EngineReport::Vllm(report) => report.dtype.as_deref(),
        }
    }

    /// Number format in which weights are kept; vLLM does not report one.
    pub fn weights_dtype(&self) -> Option<&str> {
        match self {
            EngineReport::Candle(report) => Some(report.weights_dtype),
            EngineReport::Vllm(_) => None,
        }
    }

    /// Kernels in use.
    pub fn kernels(&self) -> Option<&str> {
        match self {
            EngineReport::Candle(report) => Some(&report.kernels),
            EngineReport::Vllm(report) => report.kernels.as_deref(),
        }
    }

    /// Sequences in one step at most.
    pub fn max_num_seqs(&self) -> Option<usize> {
        match self {
            EngineReport::Candle(report) => Some(report.max_num_seqs),
            EngineReport::Vllm(report) => report.max_num_seqs,
        }
    }

    /// Blocks in the KV cache.
    pub fn kv_blocks(&self) -> Option<usize> {
        match self {
            EngineReport::Candle(report) => Some(report.kv_blocks),
            EngineReport::Vllm(report) => report.kv_blocks,
        }
    }

    /// Size of the KV cache; vLLM does not report one.
    pub fn kv_cache_bytes(&self) -> Option<u64> {
        match self {
            EngineReport::Candle(report) => Some(report.kv_cache_bytes),
            EngineReport::Vllm(_) => None,
        }
    }

    /// GPUs that compute, on all nodes together.
    pub fn gpus(&self) -> usize {
        match self {
            EngineReport::Candle(report) if report.device == "cuda" => report.tensor_parallel_size,
            EngineReport::Vllm(report) if report.device.as_deref() == Some("cuda") => {
                report.tensor_parallel_size.unwrap_or(1)
            }
            EngineReport::Candle(_) | EngineReport::Vllm(_) => 0,
        }
    }

    /// Reason for which the machine's limits could not be measured, where that was tried.
    pub fn limits_not_measured(&self) -> Option<&str> {
        match self {
            EngineReport::Candle(report) => report.limits_not_measured.as_deref(),
            EngineReport::Vllm(_) => None,
        }
    }
}

/// One line of JSON, as in `result.json`.
impl fmt::Display for EngineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

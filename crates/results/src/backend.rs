//! Report of a backend on itself, as it stands in a result.

use serde::Deserialize;

use super::details::Details;
use super::limits;

/// Engine, version, model and everything that this engine alone has.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct BackendSummary {
    /// `candle`, `vllm` or `sglang`.
    pub backend: String,
    /// Version of the engine.
    pub version: String,
    /// Model architecture as the checkpoint names it.
    pub architecture: String,
    /// Weights counted once; `None` where the engine cannot tell.
    #[serde(default)]
    pub parameters: Option<u64>,
    /// Longest prompt plus output that it was set up for.
    #[serde(default)]
    pub max_model_len: Option<u64>,
    /// Harmless faults of the model's files.
    #[serde(default, deserialize_with = "limits::list::<_, _, 1000>")]
    pub warnings: Vec<String>,
    /// Everything else that the engine reports, under its own keys.
    #[serde(default)]
    pub engine: Details,
}

impl BackendSummary {
    /// Platform that computes: `cpu`, `cuda` or another one.
    pub fn device(&self) -> Option<&str> {
        self.engine.get("device")
    }

    /// Number format of activations and of the KV cache.
    pub fn dtype(&self) -> Option<&str> {
        self.engine.get("dtype")
    }

    /// Number format in which weights are kept.
    pub fn weights_dtype(&self) -> Option<&str> {
        self.engine.get("weights_dtype")
    }

    /// Method of quantisation, where the engine reports one.
    pub fn quantization(&self) -> Option<&str> {
        self.engine.get("quantization")
    }

    /// Product name or instruction set of the device: the name where there is one, the kernels otherwise.
    pub fn device_name(&self) -> Option<&str> {
        self.engine.get("device_name").or_else(|| self.engine.get("kernels"))
    }

    /// Tells whether equal beginnings of prompts are computed once.
    pub fn prefix_caching(&self) -> Option<bool> {
        self.engine.number("prefix_caching")
    }

    /// GPUs that the model is computed on: one for each rank of each engine, none on a CPU.
    pub fn gpus(&self) -> u64 {
        // Each rank computes on one device; on a CPU ranks are threads.
        match self.device() {
            None | Some("cpu") => 0,
            Some(_) => ["data_parallel_size", "tensor_parallel_size"]
                .map(|size| self.engine.number(size).unwrap_or(1))
                .into_iter()
                .fold(1, u64::saturating_mul),
        }
    }

    /// Machines that share the model.
    pub fn machines(&self) -> u64 {
        self.engine.number("machines").unwrap_or(1)
    }
}

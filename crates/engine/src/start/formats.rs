//! Number formats that an engine computes in and keeps weights in: as configured, or those of the model.

use crate::device::platform::Platform;
use flashjob_config::{DtypeChoice, EngineConfig};
use flashjob_model::{Dtype, Model, WeightsFormat};

/// Number formats of an engine.
#[derive(Clone, Debug)]
pub struct Formats {
    /// Format of the KV cache, and of activations where they are not in single precision.
    pub dtype: Dtype,
    /// Matrices in memory.
    pub weights: WeightsInMemory,
}

impl Formats {
    /// Formats for `model` on `platform`.
    pub fn new(platform: &dyn Platform, model: &Model, config: &EngineConfig) -> Self {
        let dtype = dtype(config, model.dtype);
        let format = platform.weights_format(model, dtype, config.quantization);
        Self { dtype, weights: WeightsInMemory::new(model, format) }
    }
}

/// Weights as they are kept.
#[derive(Clone, Debug)]
pub struct WeightsInMemory {
    /// Format that they are kept in.
    pub format: WeightsFormat,
    /// Names of the encodings, of most weights first: `q4_k, q6_k`.
    pub name: String,
    /// Memory that they take, but for a little padding; vectors are in single precision.
    pub bytes: u64,
}

impl WeightsInMemory {
    /// Memory for the weights of `model`.
    fn new(model: &Model, format: WeightsFormat) -> Self {
        let matrices = model.weights.kept_by_encoding(format);
        let names: Vec<&str> = matrices.iter().map(|(encoding, _)| encoding.name()).collect();
        let of_matrices: u64 = matrices
            .iter()
            .map(|(encoding, weights)| weights / encoding.block_len() as u64 * encoding.block_bytes() as u64)
            .sum();
        let vectors = model.config.tensors().map(|tensor| model.config.shape(tensor)).filter(|shape| shape.len() == 1);
        let of_vectors = vectors.map(|shape| (shape[0] * size_of::<f32>()) as u64).sum::<u64>();
        Self { format, name: names.join(", "), bytes: of_matrices + of_vectors }
    }
}

/// The number format to compute in: as configured, or the model's own.
fn dtype(config: &EngineConfig, model: Dtype) -> Dtype {
    match config.dtype {
        DtypeChoice::Auto => model,
        DtypeChoice::Float16 => Dtype::F16,
        DtypeChoice::Bfloat16 => Dtype::Bf16,
        DtypeChoice::Float32 => Dtype::F32,
    }
}

//! Names of tensors in GGUF files (`gguf-py/gguf/constants.py` of llama.cpp), and where they lie.

use std::collections::BTreeSet;

use super::Gguf;
use super::header::TensorInfo;
use crate::model::stored::{RowOrder, Stored};
use crate::model::{DecoderConfig, Error, LayerTensor, TensorName, Weights, families};

/// Factors on rotary wavelengths, one for each pair of entries of a head.
pub(in crate::model) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Finds a place for every tensor of `config` in `gguf`, and a use for every tensor of `gguf`.
pub(super) fn find(gguf: &Gguf, config: &DecoderConfig) -> Result<Weights, Error> {
    let pairs = families::gguf_rotates_pairs(gguf);
    let expected: BTreeSet<String> = config.tensors().map(name).chain([ROPE_FACTORS.into()]).collect();
    let unexpected = gguf.tensors.keys().filter(|name| !expected.contains(*name)).cloned();
    let find = |tensor| {
        let name = name(tensor);
        let info = gguf.tensors.get(&name).ok_or_else(|| format!("{name} is missing"))?;
        let rotated = matches!(
            tensor,
            TensorName::Layer(_, LayerTensor::Q | LayerTensor::K | LayerTensor::QBias | LayerTensor::KBias)
        );
        let row_order = if pairs && rotated { RowOrder::Pairs { head_dim: config.head_dim } } else { RowOrder::Halves };
        stored(gguf, name, info, &config.shape(tensor), row_order)
    };
    Weights::new(gguf.metadata.path(), config, find, unexpected)
}

fn stored(
    gguf: &Gguf,
    name: String,
    info: &TensorInfo,
    shape: &[usize],
    row_order: RowOrder,
) -> Result<Stored, String> {
    if info.shape.iter().copied().ne(shape.iter().map(|&n| n as u64)) {
        return Err(format!("{name} has shape {:?}, expected {shape:?}", info.shape));
    }
    let encoding = info.encoding.clone().map_err(|kind| {
        format!("{name} is {kind}; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K")
    })?;
    let (rows, columns) = (shape[0], shape.get(1).copied().unwrap_or(1));
    if columns % encoding.block_len() != 0 {
        return Err(format!("{name} is a vector and should not be quantised"));
    }
    Ok(Stored { file: gguf.file.clone(), name, encoding, offset: info.offset, rows, columns, row_order })
}

fn name(tensor: TensorName) -> String {
    let (layer, tensor) = match tensor {
        TensorName::Embedding => return "token_embd.weight".into(),
        TensorName::FinalNorm => return "output_norm.weight".into(),
        TensorName::Head => return "output.weight".into(),
        TensorName::Layer(layer, tensor) => (layer, tensor),
    };
    let name = match tensor {
        LayerTensor::InputNorm => "attn_norm.weight",
        LayerTensor::PostAttentionNorm => "ffn_norm.weight",
        LayerTensor::Q => "attn_q.weight",
        LayerTensor::K => "attn_k.weight",
        LayerTensor::V => "attn_v.weight",
        LayerTensor::QBias => "attn_q.bias",
        LayerTensor::KBias => "attn_k.bias",
        LayerTensor::VBias => "attn_v.bias",
        LayerTensor::O => "attn_output.weight",
        LayerTensor::Gate => "ffn_gate.weight",
        LayerTensor::Up => "ffn_up.weight",
        LayerTensor::Down => "ffn_down.weight",
    };
    format!("blk.{layer}.{name}")
}

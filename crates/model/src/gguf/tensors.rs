//! Names of tensors in GGUF files (`gguf-py/gguf/constants.py` of llama.cpp), and where they lie.

use std::collections::BTreeSet;

use super::Gguf;
use super::header::TensorInfo;
use crate::layout::Layout;
use crate::stored::{RowOrder, Stored};
use crate::{DecoderConfig, Error, LayerTensor, TensorName, Weights};

/// Factors of rotary wavelengths, one for each pair of entries of a head.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Factors for sequences within the length of the original training, and beyond it.
pub(crate) const ROPE_FACTORS_SHORT_LONG: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// Finds the location of every tensor of `config` in `gguf`, and a use for every tensor of `gguf`.
pub(super) fn find(gguf: &Gguf, config: &DecoderConfig, layout: Layout) -> Result<Weights, Error> {
    let name = |tensor| name(tensor, layout);
    let factors = [ROPE_FACTORS].into_iter().chain(ROPE_FACTORS_SHORT_LONG).map(String::from);
    let expected: BTreeSet<String> = config.tensors().map(name).chain(factors).collect();
    let unexpected = gguf.tensors.keys().filter(|name| !expected.contains(*name)).cloned();
    let find = |tensor| {
        let name = name(tensor);
        let info = gguf.tensors.get(&name).ok_or_else(|| format!("{name} is missing"))?;
        let rotated = matches!(
            tensor,
            TensorName::Layer(_, LayerTensor::Q | LayerTensor::K | LayerTensor::QBias | LayerTensor::KBias)
        );
        let row_order = match layout.rotates_pairs && rotated {
            true => RowOrder::Pairs { head_dim: config.head_dim },
            false => RowOrder::Halves,
        };
        stored(gguf, name, info, config, layout, tensor, row_order)
    };
    Weights::new(gguf.metadata.path(), config, find, unexpected)
}

fn stored(
    gguf: &Gguf,
    name: String,
    info: &TensorInfo,
    config: &DecoderConfig,
    layout: Layout,
    tensor: TensorName,
    row_order: RowOrder,
) -> Result<Stored, String> {
    let part = layout.part(config, tensor);
    let mut shape = config.shape(tensor);
    let rows = std::mem::replace(&mut shape[0], part.of_rows);
    if info.shape.iter().copied().ne(shape.iter().map(|&n| n as u64)) {
        return Err(format!("{name} has shape {:?}, expected {shape:?}", info.shape));
    }
    let encoding = info.encoding.clone().map_err(|kind| {
        format!("{name} is {kind}; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K")
    })?;
    let columns = shape.get(1).copied().unwrap_or(1);
    if columns % encoding.block_len() != 0 {
        return Err(format!("{name} is a vector and should not be quantised"));
    }
    let norm_offset = layout.norm_offset(tensor);
    let file = gguf.file.clone();
    let mut stored = Stored { file, name, encoding, offset: info.offset, rows, columns, row_order, norm_offset };
    stored.offset += (part.row * stored.row_bytes()) as u64;
    Ok(stored)
}

fn name(tensor: TensorName, layout: Layout) -> String {
    let (layer, tensor) = match tensor {
        TensorName::Embedding => return "token_embd.weight".into(),
        TensorName::FinalNorm => return "output_norm.weight".into(),
        TensorName::Head => return "output.weight".into(),
        TensorName::Layer(layer, tensor) => (layer, tensor),
    };
    let name = match tensor {
        LayerTensor::InputNorm => "attn_norm.weight",
        LayerTensor::AttentionOutputNorm => "post_attention_norm.weight",
        LayerTensor::FeedForwardNorm => "ffn_norm.weight",
        LayerTensor::FeedForwardOutputNorm => "post_ffw_norm.weight",
        LayerTensor::Q | LayerTensor::K | LayerTensor::V if layout.fused => "attn_qkv.weight",
        LayerTensor::Gate | LayerTensor::Up if layout.fused => "ffn_up.weight",
        LayerTensor::Q => "attn_q.weight",
        LayerTensor::K => "attn_k.weight",
        LayerTensor::V => "attn_v.weight",
        LayerTensor::QBias => "attn_q.bias",
        LayerTensor::KBias => "attn_k.bias",
        LayerTensor::VBias => "attn_v.bias",
        LayerTensor::QNorm => "attn_q_norm.weight",
        LayerTensor::KNorm => "attn_k_norm.weight",
        LayerTensor::O => "attn_output.weight",
        LayerTensor::Gate => "ffn_gate.weight",
        LayerTensor::Up => "ffn_up.weight",
        LayerTensor::Down => "ffn_down.weight",
    };
    format!("blk.{layer}.{name}")
}

//! How a family's checkpoints differ from what the decoder wants, apart from names. Files and formats are not known here.

use super::{DecoderConfig, LayerTensor, TensorName};

/// What distinguishes a family's checkpoints from what the decoder wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// q, k and v lie in one tensor, gate and up in another.
    pub fused: bool,
    /// Norms are stored less by 1.
    pub norms_less_by_one: bool,
    /// Rows of q and k lie so that neighbours rotate together; llama.cpp's `LLAMA_ROPE_TYPE_NORM`.
    pub rotates_pairs: bool,
}

/// Where a tensor lies inside one that holds several, one below the other.
pub(super) struct Part {
    /// First row.
    pub row: usize,
    /// Rows of all.
    pub of_rows: usize,
}

impl Layout {
    /// Every tensor as the decoder wants it.
    pub const PLAIN: Layout = Layout { fused: false, norms_less_by_one: false, rotates_pairs: false };

    /// Where `tensor` lies in the tensor that holds it.
    pub fn part(&self, config: &DecoderConfig, tensor: TensorName) -> Part {
        let rows = |tensor| config.shape(TensorName::Layer(0, tensor))[0];
        let (before, after): (&[LayerTensor], &[LayerTensor]) = match tensor {
            TensorName::Layer(_, LayerTensor::Q) if self.fused => (&[], &[LayerTensor::K, LayerTensor::V]),
            TensorName::Layer(_, LayerTensor::K) if self.fused => (&[LayerTensor::Q], &[LayerTensor::V]),
            TensorName::Layer(_, LayerTensor::V) if self.fused => (&[LayerTensor::Q, LayerTensor::K], &[]),
            TensorName::Layer(_, LayerTensor::Gate) if self.fused => (&[], &[LayerTensor::Up]),
            TensorName::Layer(_, LayerTensor::Up) if self.fused => (&[LayerTensor::Gate], &[]),
            _ => (&[], &[]),
        };
        let sum = |tensors: &[LayerTensor]| tensors.iter().map(|&tensor| rows(tensor)).sum::<usize>();
        let row = sum(before);
        Part { row, of_rows: row + config.shape(tensor)[0] + sum(after) }
    }

    /// What must be added to the numbers of `tensor`.
    pub fn stored_less_by(&self, tensor: TensorName) -> f32 {
        let is_norm = matches!(
            tensor,
            TensorName::FinalNorm
                | TensorName::Layer(
                    _,
                    LayerTensor::InputNorm
                        | LayerTensor::QNorm
                        | LayerTensor::KNorm
                        | LayerTensor::AttentionOutputNorm
                        | LayerTensor::FeedForwardNorm
                        | LayerTensor::FeedForwardOutputNorm
                )
        );
        if self.norms_less_by_one && is_norm { 1.0 } else { 0.0 }
    }
}

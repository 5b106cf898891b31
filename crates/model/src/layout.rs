//! Layout of a family's checkpoints, apart from names: fused tensors, norm offset, order of rows. Knows no files or formats.

use super::{DecoderConfig, LayerTensor, TensorName};

/// Differences between a family's checkpoints and the decoder's layout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// True if q, k and v are in one tensor, and gate and up in another.
    pub fused: bool,
    /// True if norms are stored as `weight - 1`.
    pub norms_with_offset: bool,
    /// True if neighbouring rows of q and k rotate together; llama.cpp's `LLAMA_ROPE_TYPE_NORM`.
    pub rotates_pairs: bool,
}

/// Position of a tensor inside of a fused one, whose parts are stacked by rows.
pub(super) struct FusedPart {
    /// First row of the tensor.
    pub row: usize,
    /// Rows of the fused tensor.
    pub of_rows: usize,
}

impl Layout {
    /// The decoder's own layout.
    pub const PLAIN: Layout = Layout { fused: false, norms_with_offset: false, rotates_pairs: false };

    /// Position of `tensor` in the tensor that contains it.
    pub fn part(&self, config: &DecoderConfig, tensor: TensorName) -> FusedPart {
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
        FusedPart { row, of_rows: row + config.shape(tensor)[0] + sum(after) }
    }

    /// Constant to add to the numbers of `tensor`.
    pub fn norm_offset(&self, tensor: TensorName) -> f32 {
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
        if self.norms_with_offset && is_norm { 1.0 } else { 0.0 }
    }
}

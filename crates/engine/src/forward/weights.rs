//! One rank's weights, merged and placed where they are multiplied.

use std::sync::Arc;

use candle_core::Tensor;

use crate::cost::WeightBytes;
use crate::device::Linear;

/// One layer's weights, merged and packed.
pub struct LayerWeights {
    /// `[hidden]`.
    pub input_norm: Tensor,
    /// q, k and v, one below the other.
    pub qkv: Box<dyn Linear>,
    /// Norms of the heads of q and of k, `[head_dim]` each.
    pub qk_norms: Option<[Tensor; 2]>,
    /// Attention's result back into the residual stream.
    pub o: Box<dyn Linear>,
    /// `[hidden]`: of what `o` gives.
    pub attention_output_norm: Option<Tensor>,
    /// `[hidden]`.
    pub feed_forward_norm: Tensor,
    /// Gate and up projections, one below the other.
    pub gate_up: Box<dyn Linear>,
    /// The feed-forward layer back into the residual stream.
    pub down: Box<dyn Linear>,
    /// `[hidden]`: of what `down` gives.
    pub feed_forward_output_norm: Option<Tensor>,
}

/// One rank's weights.
pub struct DecoderWeights {
    /// `[vocabulary, hidden]`.
    pub embedding: Arc<dyn Linear>,
    /// From first to last.
    pub layers: Vec<LayerWeights>,
    /// `[hidden]`.
    pub final_norm: Tensor,
    /// `[vocabulary, hidden]`: the embedding itself where the two are tied.
    pub head: Arc<dyn Linear>,
}

impl DecoderWeights {
    /// Memory of all matrices.
    pub fn bytes(&self) -> WeightBytes {
        let layers = self.layers.iter();
        let layer_bytes =
            layers.map(|layer| layer.qkv.bytes() + layer.o.bytes() + layer.gate_up.bytes() + layer.down.bytes());
        let tied = Arc::ptr_eq(&self.head, &self.embedding);
        WeightBytes {
            layers: layer_bytes.sum(),
            head: self.head.bytes(),
            embedding: if tied { 0 } else { self.embedding.bytes() },
        }
    }
}

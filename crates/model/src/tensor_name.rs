//! The decoder's tensors by role, and the shape that a configuration gives each of them.

use super::DecoderConfig;

/// A tensor of the decoder, whatever a checkpoint calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorName {
    /// Token embedding `[vocab, hidden]`.
    Embedding,
    /// RMSNorm before the head `[hidden]`.
    FinalNorm,
    /// Output projection `[vocab, hidden]`; the embedding where the two are tied.
    Head,
    /// A tensor of the layer with this index.
    Layer(usize, LayerTensor),
}

/// A tensor of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerTensor {
    /// RMSNorm before attention `[hidden]`.
    InputNorm,
    /// RMSNorm of what attention adds to the residual stream `[hidden]`.
    AttentionOutputNorm,
    /// RMSNorm before the feed-forward layer `[hidden]`.
    FeedForwardNorm,
    /// RMSNorm of what the feed-forward layer adds to the residual stream `[hidden]`.
    FeedForwardOutputNorm,
    /// Query projection `[heads * head_dim, hidden]`, rows of a head in the order of the half-rotation RoPE.
    Q,
    /// Key projection `[kv_heads * head_dim, hidden]`, rows ordered as in `Q`.
    K,
    /// Value projection `[kv_heads * head_dim, hidden]`.
    V,
    /// Query bias `[heads * head_dim]`.
    QBias,
    /// Key bias `[kv_heads * head_dim]`.
    KBias,
    /// Value bias `[kv_heads * head_dim]`.
    VBias,
    /// RMSNorm of each head of q `[head_dim]`.
    QNorm,
    /// RMSNorm of each head of k `[head_dim]`.
    KNorm,
    /// Attention output projection `[hidden, heads * head_dim]`.
    O,
    /// Gate projection `[intermediate, hidden]`.
    Gate,
    /// Up projection `[intermediate, hidden]`.
    Up,
    /// Down projection `[hidden, intermediate]`.
    Down,
}

impl LayerTensor {
    /// All of them, in the order in which a forward pass meets them.
    const ALL: [LayerTensor; 16] = [
        LayerTensor::InputNorm,
        LayerTensor::Q,
        LayerTensor::K,
        LayerTensor::V,
        LayerTensor::QBias,
        LayerTensor::KBias,
        LayerTensor::VBias,
        LayerTensor::QNorm,
        LayerTensor::KNorm,
        LayerTensor::O,
        LayerTensor::AttentionOutputNorm,
        LayerTensor::FeedForwardNorm,
        LayerTensor::Gate,
        LayerTensor::Up,
        LayerTensor::Down,
        LayerTensor::FeedForwardOutputNorm,
    ];
}

impl DecoderConfig {
    /// Every tensor of the decoder, in the order in which a forward pass meets them. `Head` is absent where it is
    /// the embedding.
    pub fn tensors(&self) -> impl Iterator<Item = TensorName> + use<> {
        let (qkv_bias, qk_norm, output_norms) = (self.qkv_bias, self.qk_norm, self.output_norms);
        let has = move |tensor: &LayerTensor| match tensor {
            LayerTensor::QBias | LayerTensor::KBias | LayerTensor::VBias => qkv_bias,
            LayerTensor::QNorm | LayerTensor::KNorm => qk_norm,
            LayerTensor::AttentionOutputNorm | LayerTensor::FeedForwardOutputNorm => output_norms,
            _ => true,
        };
        let layer =
            move |layer| LayerTensor::ALL.into_iter().filter(has).map(move |tensor| TensorName::Layer(layer, tensor));
        let layers = (0..self.layers).flat_map(layer);
        let head = (!self.tied_head).then_some(TensorName::Head);
        std::iter::once(TensorName::Embedding).chain(layers).chain([TensorName::FinalNorm]).chain(head)
    }

    /// The shape of the whole tensor: `[out, in]` for matrices, `[n]` for vectors.
    pub fn shape(&self, tensor: TensorName) -> Vec<usize> {
        let query_rows = self.heads * self.head_dim;
        let kv_rows = self.kv_heads * self.head_dim;
        match tensor {
            TensorName::Embedding | TensorName::Head => vec![self.vocab_size, self.hidden_size],
            TensorName::FinalNorm => vec![self.hidden_size],
            TensorName::Layer(_, tensor) => match tensor {
                LayerTensor::InputNorm
                | LayerTensor::AttentionOutputNorm
                | LayerTensor::FeedForwardNorm
                | LayerTensor::FeedForwardOutputNorm => vec![self.hidden_size],
                LayerTensor::QNorm | LayerTensor::KNorm => vec![self.head_dim],
                LayerTensor::Q => vec![query_rows, self.hidden_size],
                LayerTensor::K | LayerTensor::V => vec![kv_rows, self.hidden_size],
                LayerTensor::QBias => vec![query_rows],
                LayerTensor::KBias | LayerTensor::VBias => vec![kv_rows],
                LayerTensor::O => vec![self.hidden_size, query_rows],
                LayerTensor::Gate | LayerTensor::Up => vec![self.intermediate_size, self.hidden_size],
                LayerTensor::Down => vec![self.hidden_size, self.intermediate_size],
            },
        }
    }

    /// Weights of the decoder; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors().map(|tensor| self.shape(tensor).iter().map(|&n| n as u64).product::<u64>()).sum()
    }
}

//! Arguments of the operations of a device. Tensors are contiguous, and those that an operation writes share no memory with others.

use std::ops::Range;

use candle_core::Tensor;

use crate::forward::batch::ForwardBatch;
use crate::forward::masks::TokenMasks;
use flashjob_cpu::{AttentionShape, CacheLayout};
use flashjob_model::Activation;

/// Cached keys and values of one layer.
pub struct LayerCache {
    /// Blocks of [`CacheLayout::block_keys`].
    pub keys: Tensor,
    /// Blocks of [`CacheLayout::block_values`].
    pub values: Tensor,
}

/// Arguments of [`super::Device::add_rms_norm`].
pub struct AddRmsNorm<'a> {
    /// `[rows, hidden]`, single precision: added to.
    pub residual: &'a Tensor,
    /// `[rows, hidden]`; `None` where nothing was computed yet.
    pub delta: Option<&'a Tensor>,
    /// `[hidden]`: `delta` is normalised with it before it is added.
    pub delta_norm: Option<&'a Tensor>,
    /// `[hidden]`.
    pub weight: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
    /// `[rows, hidden]`, overwritten.
    pub normed: &'a Tensor,
}

/// Arguments of [`super::Device::norm_heads`].
pub struct NormHeads<'a> {
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`: q and k are normalised in place.
    pub qkv: &'a Tensor,
    /// Heads of a row.
    pub shape: AttentionShape,
    /// `[head_dim]`, for heads of q.
    pub q: &'a Tensor,
    /// `[head_dim]`, for heads of k.
    pub k: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

/// Arguments of [`super::RotaryEmbedding::rope_and_cache`].
pub struct RopeAndCache<'a> {
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`: q and k are rotated in place.
    pub qkv: &'a Tensor,
    /// Heads of a row, and the cache's blocks.
    pub layout: CacheLayout,
    /// Positions and slots.
    pub step: &'a ForwardBatch,
    /// Cache of the layer.
    pub cache: &'a LayerCache,
}

/// Settings of attention that all steps and layers share.
#[derive(Clone, Debug)]
pub struct AttentionSettings {
    /// Heads of this rank, and tokens that a block of the cache holds.
    pub layout: CacheLayout,
    /// Factor that scores `q · k` are scaled by.
    pub scale: f32,
    /// `softcap · tanh(score / softcap)` before the softmax.
    pub softcap: Option<f32>,
}

/// Arguments of [`super::Device::attention`], those of `candle_flash_attn::flash_attn_varlen_paged_windowed`: queries of all sequences
/// one after the other, cumulative lengths, block table; causal, aligned to the bottom right.
pub struct Attention<'a> {
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`, whose keys and values are in `cache` already.
    pub qkv: &'a Tensor,
    /// Settings of all layers.
    pub settings: &'a AttentionSettings,
    /// A query sees this many keys at most, itself included.
    pub window: Option<usize>,
    /// Lengths and block tables.
    pub step: &'a ForwardBatch,
    /// Cache of the layer.
    pub cache: &'a LayerCache,
    /// `[tokens, heads · head_dim]`, overwritten.
    pub out: &'a Tensor,
}

/// Arguments of [`super::Device::gated`].
pub struct Gated<'a> {
    /// `[rows, 2 · width]`, in each row first the gate, then up.
    pub gate_up: &'a Tensor,
    /// The nonlinearity.
    pub activation: Activation,
    /// `[rows, width]`, overwritten.
    pub activated: &'a Tensor,
}

/// Arguments of [`super::Device::gather_rows`].
pub struct GatherRows<'a> {
    /// `[tokens, width]`.
    pub from: &'a Tensor,
    /// Rows of the step whose logits are wanted.
    pub step: &'a ForwardBatch,
    /// `[rows wanted, width]`, overwritten: row `i` by that of `from` which is the `i`-th whose logits are wanted.
    pub to: &'a Tensor,
}

/// Arguments of [`super::Device::mask_logits`].
pub struct MaskLogits<'a> {
    /// `[rows, vocabulary]`, single precision: what a mask does not allow becomes −∞.
    pub logits: &'a Tensor,
    /// Masks of some of the rows, one at least.
    pub masks: &'a TokenMasks,
}

/// Arguments of [`super::Device::sample`].
pub struct Sample<'a> {
    /// `[rows, vocabulary]`, single precision: the first rows are those from which tokens are chosen, once they are adjusted in place.
    pub logits: &'a Tensor,
    /// How they are chosen.
    pub step: &'a ForwardBatch,
    /// Where the host is to find them.
    pub turn: Turn,
}

/// Steps take turns with the two places that a device has for chosen tokens: those of one step can be read while the next one is under
/// way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    /// The first place.
    #[default]
    Even,
    /// The second one.
    Odd,
}

impl Turn {
    /// Number of turns.
    pub const COUNT: usize = 2;

    /// The turn of the next step.
    #[must_use]
    pub fn next(self) -> Self {
        match self {
            Turn::Even => Turn::Odd,
            Turn::Odd => Turn::Even,
        }
    }

    /// Number of the place.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Arguments of [`super::Linear::embed`]. Ranks that share a vocabulary each know some of its rows and write zeros for the others,
/// so that the sum over ranks is the embedding.
pub struct Embed<'a> {
    /// Token ids of the step.
    pub step: &'a ForwardBatch,
    /// The tokens whose rows the matrix has.
    pub vocabulary: Range<u32>,
    /// Factor on all rows.
    pub scale: f32,
    /// `[tokens, hidden]`, single precision, overwritten.
    pub hidden: &'a Tensor,
}

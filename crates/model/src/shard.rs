//! Shards of tensors for tensor parallelism (Shoeybi et al., Megatron-LM, 2019).
//!
//! Column-parallel matrices (q, k, v, gate, up) are split by rows, row-parallel ones (o, down) by columns, the
//! embedding and the head by vocabulary; norms are whole on every rank.

use std::ops::Range;

use super::{DecoderConfig, Error, LayerTensor, TensorName};

/// Index of a rank among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Index of the rank, below `world_size`.
    pub rank: usize,
    /// Number of ranks, at least 1.
    pub world_size: usize,
}

impl Shard {
    /// All of the model on one rank.
    pub const WHOLE: Shard = Shard { rank: 0, world_size: 1 };
}

/// Part of a rank, as ranges of the whole model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardShape {
    /// Range of query heads.
    pub heads: Range<usize>,
    /// Range of key and value heads; if there are more ranks than heads, several ranks hold the same one.
    pub kv_heads: Range<usize>,
    /// Rows of gate and up, columns of down.
    pub intermediate: Range<usize>,
    /// Rows of embedding and head. All ranks have `ceil(vocab / world_size)` but the last, which may have fewer.
    pub vocabulary: Range<usize>,
}

impl ShardShape {
    /// The part of `shard` in a model.
    pub fn new(config: &DecoderConfig, shard: Shard) -> Result<Self, Error> {
        let Shard { rank, world_size } = shard;
        let refuse = |reason: String| Error::Shard { rank, world_size, reason };
        if world_size == 0 || rank >= world_size {
            return Err(refuse("ranks count from 0 and stay below the number of ranks".into()));
        }
        let even = |what: &str, count: usize| {
            if count.is_multiple_of(world_size) {
                let each = count / world_size;
                Ok(rank * each..(rank + 1) * each)
            } else {
                Err(refuse(format!(
                    "{count} {what} cannot be split evenly; choose a tensor-parallel-size that divides"
                )))
            }
        };
        // More ranks than key and value heads: heads are replicated, as in Megatron-LM and vLLM.
        let kv_heads = if world_size > config.kv_heads && world_size.is_multiple_of(config.kv_heads) {
            let head = rank / (world_size / config.kv_heads);
            head..head + 1
        } else {
            even("key and value heads", config.kv_heads)?
        };
        // Rounded up, so that every rank has the same number of rows and gathers need no padding but at the end.
        let rows = config.vocab_size.div_ceil(world_size);
        let vocabulary = (rank * rows).min(config.vocab_size)..((rank + 1) * rows).min(config.vocab_size);
        if vocabulary.is_empty() {
            return Err(refuse(format!("a vocabulary of {} leaves it nothing", config.vocab_size)));
        }
        Ok(Self {
            heads: even("heads", config.heads)?,
            kv_heads,
            intermediate: even("feed-forward units", config.intermediate_size)?,
            vocabulary,
        })
    }
}

/// Rows and columns of a tensor; a vector is a matrix of one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

impl Window {
    /// The part of `tensor` that `shard` holds.
    pub fn new(config: &DecoderConfig, tensor: TensorName, shard: Shard) -> Result<Self, Error> {
        let part = ShardShape::new(config, shard)?;
        let scale = |heads: Range<usize>| heads.start * config.head_dim..heads.end * config.head_dim;
        let shape = config.shape(tensor);
        let (rows, columns) = (0..shape[0], 0..shape.get(1).copied().unwrap_or(1));
        Ok(match tensor {
            TensorName::Embedding | TensorName::Head => Window { rows: part.vocabulary, columns },
            TensorName::FinalNorm => Window { rows, columns },
            TensorName::Layer(_, tensor) => match tensor {
                LayerTensor::InputNorm
                | LayerTensor::QNorm
                | LayerTensor::KNorm
                | LayerTensor::AttentionOutputNorm
                | LayerTensor::FeedForwardNorm
                | LayerTensor::FeedForwardOutputNorm => Window { rows, columns },
                LayerTensor::Q | LayerTensor::QBias => Window { rows: scale(part.heads), columns },
                LayerTensor::K | LayerTensor::V | LayerTensor::KBias | LayerTensor::VBias => {
                    Window { rows: scale(part.kv_heads), columns }
                }
                LayerTensor::O => Window { rows, columns: scale(part.heads) },
                LayerTensor::Gate | LayerTensor::Up => Window { rows: part.intermediate, columns },
                LayerTensor::Down => Window { rows, columns: part.intermediate },
            },
        })
    }
}

//! The one decoder: a step's tokens in, logits out.
//!
//! Whatever distinguishes model families stands in [`DecoderConfig`]; whatever distinguishes devices stands behind
//! [`Device`]; whatever distinguishes one rank from many stands behind [`Communicator`]. It computes in memory that was
//! allocated beforehand, and knows nothing of requests or scheduling.

use std::sync::Arc;

use candle_core::Tensor;
use tokio_util::sync::CancellationToken;

use crate::device::operation::Operation;
use crate::device::ops::{
    AddRmsNorm, Attention, AttentionSettings, Embed, Gated, GatherRows, LayerCache, NormHeads, RopeAndCache,
};
use crate::device::{Device, RotaryEmbedding};
use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use crate::forward::kv_cache::{CacheOrder, KvCache};
use crate::forward::rope;
use crate::forward::weights::{DecoderWeights, LayerWeights};
use crate::forward::workspace::{Rows, Views, Widths, Workspace};
use crate::parallel::communicator::Communicator;
use crate::schedule::limits::EngineLimits;
use flashjob_cpu::AttentionShape;
use flashjob_model::{DecoderConfig, Dtype, RopeConfig, ShardShape};

/// One rank's part of a model, ready to compute.
pub struct Decoder {
    config: DecoderConfig,
    weights: DecoderWeights,
    shard: ShardShape,
    attention: AttentionSettings,
    ropes: Ropes,
    workspace: Workspace,
    communicator: Box<dyn Communicator>,
    device: Arc<dyn Device>,
    activations: Dtype,
}

/// Angles by kind of layer.
struct Ropes {
    unlimited: Box<dyn RotaryEmbedding>,
    /// Angles of layers with a window, where they differ.
    windowed: Option<Box<dyn RotaryEmbedding>>,
}

impl Ropes {
    fn of(&self, window: Option<usize>) -> &dyn RotaryEmbedding {
        match (&self.windowed, window) {
            (Some(windowed), Some(_)) => windowed.as_ref(),
            _ => self.unlimited.as_ref(),
        }
    }
}

/// Formats of what a decoder keeps.
#[derive(Clone, Copy, Debug)]
pub struct DecoderFormat {
    /// Order of keys and values in a block.
    pub cache: CacheOrder,
    /// Number format of activations other than the residual stream and the logits.
    pub activations: Dtype,
    /// Activations have room for rows up to a multiple of this.
    pub row_multiple: usize,
}

/// Widths of the activations of one rank.
pub fn widths(config: &DecoderConfig, shard: &ShardShape) -> Widths {
    let shape = attention_shape(config, shard);
    let gathers = shard.vocabulary.start == 0 && shard.vocabulary.end < config.vocab_size;
    Widths {
        hidden: config.hidden_size,
        qkv: shape.qkv_width(),
        attended: shape.out_width(),
        intermediate: shard.intermediate.len(),
        vocabulary: shard.vocabulary.len(),
        gathered: if gathers { config.vocab_size } else { 0 },
    }
}

/// Heads of one rank.
pub fn attention_shape(config: &DecoderConfig, shard: &ShardShape) -> AttentionShape {
    AttentionShape { heads: shard.heads.len(), kv_heads: shard.kv_heads.len(), head_dim: config.head_dim }
}

impl Decoder {
    /// Allocates activations for the largest step.
    ///
    /// # Errors
    /// [`Error::Compute`]: there is no memory for them.
    pub fn new(
        config: DecoderConfig,
        weights: DecoderWeights,
        limits: &EngineLimits,
        format: DecoderFormat,
        communicator: Box<dyn Communicator>,
        device: Arc<dyn Device>,
    ) -> Result<Self, Error> {
        let shard = ShardShape::new(&config, communicator.shard())?;
        let attention = AttentionSettings {
            layout: format.cache.layout(attention_shape(&config, &shard), limits.block_size),
            scale: config.attention_scale,
            softcap: config.attention_softcap,
        };
        let failed = Error::compute("allocate activations");
        let widths = widths(&config, &shard);
        let largest = limits.rounded_up(format.row_multiple);
        let workspace = Workspace::new(widths, &largest, format.activations, device.as_ref()).map_err(&failed)?;
        let angles = |config: &RopeConfig| device.rotary(rope::table(config, limits.max_model_len)).map_err(&failed);
        let windowed = config.windowed_rope.as_ref().map(angles).transpose()?;
        let ropes = Ropes { unlimited: angles(&config.rope)?, windowed };
        let activations = format.activations;
        Ok(Self { config, weights, shard, attention, ropes, workspace, communicator, device, activations })
    }

    /// Shapes of the whole model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Number format of activations other than the residual stream and the logits.
    pub fn activations(&self) -> Dtype {
        self.activations
    }

    /// The device of this rank.
    pub fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    /// Waits until everything is computed that was begun.
    ///
    /// # Errors
    /// [`Error::Compute`] of an operation that was under way.
    pub fn wait(&self) -> Result<(), Error> {
        self.device.wait().map_err(Error::compute("compute a step"))
    }

    /// Computes `step`, writes its keys and values to `cache`, and returns logits `[rows wanted, vocabulary]`, valid
    /// until the next call; `None` where no row's are wanted, and on other ranks than the first.
    ///
    /// # Errors
    /// [`Error::Cancelled`] between two layers, and [`Error::Compute`] of an operation.
    pub fn forward(
        &mut self,
        step: &ForwardBatch,
        cache: &KvCache,
        cancel: &CancellationToken,
    ) -> Result<Option<Tensor>, Error> {
        let wanted = step.logit_rows().len();
        let views = self.workspace.fit(step.tokens(), wanted.max(1)).map_err(Error::compute("size activations"))?;
        let pass = ForwardPass {
            config: &self.config,
            weights: &self.weights,
            shard: &self.shard,
            attention: &self.attention,
            ropes: &self.ropes,
            communicator: self.communicator.as_ref(),
            device: self.device.as_ref(),
            views,
            step,
        };
        // One closure for all ways: what a device records into a graph is what it launches without one.
        self.device.compute(step, &mut || pass.compute(cache, cancel))?;
        let first = wanted > 0 && self.shard.vocabulary.start == 0;
        Ok(first.then(|| views.gathered.as_ref().unwrap_or(&views.logits).clone()))
    }
}

/// Everything that the layers of one pass share.
struct ForwardPass<'a> {
    config: &'a DecoderConfig,
    weights: &'a DecoderWeights,
    shard: &'a ShardShape,
    attention: &'a AttentionSettings,
    ropes: &'a Ropes,
    communicator: &'a dyn Communicator,
    device: &'a dyn Device,
    views: &'a Views,
    step: &'a ForwardBatch,
}

/// Output of attention or of the feed-forward layer, before it is added to the residual stream.
#[derive(Clone, Copy)]
struct Delta<'a> {
    /// `[rows, hidden]`.
    tensor: &'a Tensor,
    /// `[hidden]`: normalised first.
    norm: Option<&'a Tensor>,
}

impl ForwardPass<'_> {
    /// Everything from token ids to logits; on a GPU it is queued and nothing is waited for.
    fn compute(&self, cache: &KvCache, cancel: &CancellationToken) -> Result<(), Error> {
        let Self { config, weights, shard, communicator, device, views, step, .. } = *self;
        let failed = Error::compute("compute a step");
        let wanted = step.logit_rows().len();
        let vocabulary = shard.vocabulary.start as u32..shard.vocabulary.end as u32;
        let embed = Embed { step, vocabulary, scale: config.embedding_scale, hidden: &views.all.residual };
        self.operation(Operation::Embedding, || weights.embedding.embed(&embed)).map_err(&failed)?;
        // Each rank knows some rows of the vocabulary and has zeros for the others: the sum is the embedding.
        self.all_reduce(&views.all.residual).map_err(&failed)?;

        let mut rows = &views.all;
        let mut delta = None;
        let last = weights.layers.len().saturating_sub(1);
        for (index, (layer, cache)) in weights.layers.iter().zip(cache.layers()).enumerate() {
            // Between layers, where ranks are in step: a rank that stops elsewhere would leave others waiting in a collective.
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let window = config.windows[index];
            self.queries_keys_values(layer, rows, delta, window, cache).map_err(&failed)?;
            // Chunks of a prompt only leave keys and values behind: the last layer is needed up to its cache.
            if index == last && wanted == 0 {
                return Ok(());
            }
            let settings = self.attention;
            let attention = Attention { qkv: &views.qkv, settings, window, step, cache, out: &rows.attended };
            self.operation(Operation::Attention, || device.attention(&attention)).map_err(&failed)?;
            // Beyond the last attention, rows no longer see each other: those without logits are dropped, which for a prompt of
            // thousands of tokens saves the last feed-forward layer.
            if index == last && wanted < step.tokens() {
                self.keep_wanted(rows, &views.wanted).map_err(&failed)?;
                rows = &views.wanted;
            }
            self.feed_forward(layer, rows).map_err(&failed)?;
            delta = Some(Delta { tensor: &rows.delta, norm: layer.feed_forward_output_norm.as_ref() });
        }
        self.norm(rows, delta, &weights.final_norm).map_err(&failed)?;
        self.operation(Operation::Head, || {
            weights.head.forward(&rows.normed, &views.logits)?;
            config.logits_softcap.map_or(Ok(()), |cap| device.softcap(&views.logits, cap))
        })
        .map_err(&failed)?;
        let gather = || communicator.gather(&views.logits, views.gathered.as_ref());
        self.collective(gather).map_err(&failed)
    }

    /// Queues one operation, and says so to the device.
    fn operation(
        &self,
        operation: Operation,
        queue: impl FnOnce() -> candle_core::Result<()>,
    ) -> candle_core::Result<()> {
        self.device.begin(operation)?;
        queue()?;
        self.device.end(operation)
    }

    /// Queues a collective; of a single rank there is none.
    fn collective(&self, queue: impl FnOnce() -> candle_core::Result<()>) -> candle_core::Result<()> {
        match self.communicator.shard().world_size {
            1 => queue(),
            _ => self.operation(Operation::Collective, queue),
        }
    }

    fn all_reduce(&self, rows: &Tensor) -> candle_core::Result<()> {
        self.collective(|| self.communicator.all_reduce(rows))
    }

    fn norm(&self, rows: &Rows, delta: Option<Delta<'_>>, weight: &Tensor) -> candle_core::Result<()> {
        let (eps, delta_norm) = (self.config.rms_norm_eps, delta.and_then(|delta| delta.norm));
        let delta = delta.map(|delta| delta.tensor);
        let (residual, normed) = (&rows.residual, &rows.normed);
        let norm = AddRmsNorm { residual, delta, delta_norm, weight, eps, normed };
        self.operation(Operation::Norm, || self.device.add_rms_norm(&norm))
    }

    /// The layer's first half, up to what attention reads.
    fn queries_keys_values(
        &self,
        layer: &LayerWeights,
        rows: &Rows,
        delta: Option<Delta<'_>>,
        window: Option<usize>,
        cache: &LayerCache,
    ) -> candle_core::Result<()> {
        let qkv = &self.views.qkv;
        self.norm(rows, delta, &layer.input_norm)?;
        self.operation(Operation::Qkv, || layer.qkv.forward(&rows.normed, qkv))?;
        let layout = self.attention.layout;
        if let Some([q, k]) = &layer.qk_norms {
            let shape = layout.shape();
            let norm = NormHeads { qkv, shape, q, k, eps: self.config.rms_norm_eps };
            self.operation(Operation::Norm, || self.device.norm_heads(&norm))?;
        }
        let rope = RopeAndCache { qkv, layout, step: self.step, cache };
        self.operation(Operation::RopeAndCache, || self.ropes.of(window).rope_and_cache(&rope))
    }

    /// From attention's result to the layer's own, in `delta`.
    fn feed_forward(&self, layer: &LayerWeights, rows: &Rows) -> candle_core::Result<()> {
        self.operation(Operation::O, || layer.o.forward(&rows.attended, &rows.delta))?;
        // Row-parallel: each rank has multiplied its columns of the weights only, so that results are partial sums (Megatron-LM).
        self.all_reduce(&rows.delta)?;
        let delta = Delta { tensor: &rows.delta, norm: layer.attention_output_norm.as_ref() };
        self.norm(rows, Some(delta), &layer.feed_forward_norm)?;
        self.operation(Operation::GateUp, || layer.gate_up.forward(&rows.normed, &rows.gate_up))?;
        let (gate_up, activated) = (&rows.gate_up, &rows.activated);
        let gate = Gated { gate_up, activation: self.config.activation, activated };
        self.operation(Operation::Gate, || self.device.gated(&gate))?;
        self.operation(Operation::Down, || layer.down.forward(activated, &rows.delta))?;
        self.all_reduce(&rows.delta)
    }

    /// Rows without logits have given the last layer their keys and values: nothing more is asked of them.
    fn keep_wanted(&self, all: &Rows, wanted: &Rows) -> candle_core::Result<()> {
        let gather = |from, to| self.device.gather_rows(&GatherRows { from, step: self.step, to });
        self.operation(Operation::GatherRows, || {
            gather(&all.residual, &wanted.residual)?;
            gather(&all.attended, &wanted.attended)
        })
    }
}

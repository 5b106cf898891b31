//! Weights on their way from files to packed matrices: a few tensors are read ahead while one is packed.
//!
//! Beyond the packed weights themselves, memory holds the tensors read ahead: about one layer. This file knows nothing of
//! file formats or kernels.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};

use candle_core::Tensor;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::decoder::{DecoderWeights, LayerWeights};
use super::linear::Linear;
use crate::event::{Events, Fact};
use crate::kernels::Pool;
use crate::model::{DecoderConfig, Dtype, LayerTensor, Model, Shard, TensorName, Validation};

/// Tensors read ahead, each by a thread of its own: enough to keep a disk or a bucket busy, less than a layer has.
const READ_AHEAD: usize = 4;

/// How weights are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// One rank's part.
    pub shard: Shard,
    /// Of matrices; vectors are always single precision.
    pub dtype: Dtype,
    /// What is made sure of.
    pub validation: Validation,
}

/// Reads and packs what one rank holds of `model`.
///
/// # Errors
/// [`Error::Cancelled`] within a few megabytes; [`Error::Model`] when a file cannot be read.
pub fn load(
    model: &Model,
    wanted: Wanted,
    pool: &Pool,
    events: &Events,
    cancel: &CancellationToken,
) -> Result<DecoderWeights, Error> {
    let names: Vec<TensorName> = model.weights.tensors().collect();
    let total_bytes = total_bytes(model, wanted.shard.world_size)?;
    std::thread::scope(|scope| {
        // Whatever ends this scope, nobody waits for tensors that nobody wants any more.
        let cancel = cancel.child_token();
        let _stop = cancel.clone().drop_guard();
        let reading = VecDeque::with_capacity(READ_AHEAD);
        let mut reader = Reader { scope, model, wanted, pool, events, cancel, total_bytes, names, next: 0, reading };
        let embedding = Arc::new(reader.matrix(&[TensorName::Embedding], &[])?);
        let layers = (0..model.config.layers).map(|layer| reader.layer(layer)).collect::<Result<_, Error>>()?;
        let final_norm = reader.take(TensorName::FinalNorm)?;
        let tied = model.config.tied_head;
        let head = if tied { Arc::clone(&embedding) } else { Arc::new(reader.matrix(&[TensorName::Head], &[])?) };
        Ok(DecoderWeights { embedding, layers, final_norm, head })
    })
}

/// What all ranks together read.
fn total_bytes(model: &Model, world_size: usize) -> Result<u64, Error> {
    let of = |rank| {
        let shard = Shard { rank, world_size };
        model.weights.tensors().map(move |name| model.weights.stored_bytes(name, shard))
    };
    Ok((0..world_size).flat_map(of).sum::<Result<u64, _>>()?)
}

struct Reader<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    model: &'env Model,
    wanted: Wanted,
    pool: &'env Pool,
    events: &'env Events,
    cancel: CancellationToken,
    total_bytes: u64,
    /// Everything there is to read, nearly in the order in which it is taken.
    names: Vec<TensorName>,
    next: usize,
    reading: VecDeque<(TensorName, ScopedJoinHandle<'scope, Result<Tensor, Error>>)>,
}

impl Reader<'_, '_> {
    fn layer(&mut self, layer: usize) -> Result<LayerWeights, Error> {
        use LayerTensor::{AttentionOutputNorm, FeedForwardNorm, FeedForwardOutputNorm, InputNorm};
        use LayerTensor::{Down, Gate, K, KBias, KNorm, O, Q, QBias, QNorm, Up, V, VBias};
        let name = |tensor| TensorName::Layer(layer, tensor);
        let DecoderConfig { qkv_bias, qk_norm, output_norms, .. } = self.model.config;
        let biases = [QBias, KBias, VBias].map(name);
        let biases = if qkv_bias { &biases[..] } else { &[] };
        Ok(LayerWeights {
            input_norm: self.take(name(InputNorm))?,
            qkv: self.matrix(&[Q, K, V].map(name), biases)?,
            qk_norms: if qk_norm { Some([self.take(name(QNorm))?, self.take(name(KNorm))?]) } else { None },
            o: self.matrix(&[O].map(name), &[])?,
            attention_output_norm: self.take_if(output_norms, name(AttentionOutputNorm))?,
            feed_forward_norm: self.take(name(FeedForwardNorm))?,
            gate_up: self.matrix(&[Gate, Up].map(name), &[])?,
            down: self.matrix(&[Down].map(name), &[])?,
            feed_forward_output_norm: self.take_if(output_norms, name(FeedForwardOutputNorm))?,
        })
    }

    fn take_if(&mut self, there: bool, name: TensorName) -> Result<Option<Tensor>, Error> {
        there.then(|| self.take(name)).transpose()
    }

    fn matrix(&mut self, parts: &[TensorName], biases: &[TensorName]) -> Result<Linear, Error> {
        let parts = parts.iter().map(|&part| self.take(part)).collect::<Result<Vec<_>, Error>>()?;
        let biases = biases.iter().map(|&bias| self.take(bias)).collect::<Result<Vec<_>, Error>>()?;
        Linear::pack(self.pool, &parts, &biases).map_err(Error::compute("pack weights"))
    }

    /// Waits for a tensor, with the next ones under way.
    fn take(&mut self, name: TensorName) -> Result<Tensor, Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        while self.reading.len() < READ_AHEAD && self.next < self.names.len() {
            let next = self.names[self.next];
            self.next += 1;
            self.start(next);
        }
        let place = match self.reading.iter().position(|(reading, _)| *reading == name) {
            Some(place) => place,
            // Beyond what is read ahead: a model that lists its tensors in another order.
            None => {
                if let Some(later) = self.names[self.next..].iter().position(|&later| later == name) {
                    self.names.remove(self.next + later);
                }
                self.start(name);
                self.reading.len() - 1
            }
        };
        let Some((_, thread)) = self.reading.remove(place) else { return Err(Error::Cancelled) };
        let tensor = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let bytes = self.model.weights.stored_bytes(name, self.wanted.shard)?;
        self.events.emit(Fact::WeightsRead { bytes, total_bytes: self.total_bytes });
        Ok(tensor)
    }

    fn start(&mut self, name: TensorName) {
        let (model, cancel, Wanted { shard, dtype, validation }) = (self.model, self.cancel.clone(), self.wanted);
        let dtype = if model.config.shape(name).len() == 1 { Dtype::F32 } else { dtype };
        let read = move || Ok(model.weights.read_unless_cancelled(name, shard, dtype, validation, &cancel)?);
        self.reading.push_back((name, self.scope.spawn(read)));
    }
}

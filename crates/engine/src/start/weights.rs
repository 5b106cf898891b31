//! Weights on their way from files to packed matrices.
//!
//! Threads read runs of rows, one after the other in the order of a forward pass, and put each where it belongs while it
//! is still in a cache: beyond the packed weights themselves, memory holds one run a thread, or none where the place that
//! they are read from has it in memory already. This file knows nothing of
//! file formats or kernels.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use candle_core::{Device as CandleDevice, Tensor};
use tokio_util::sync::CancellationToken;

use crate::device::{Device, Linear, MatrixBuilder};
use crate::error::Error;
use crate::forward::weights::{DecoderWeights, LayerWeights};
use flashjob_event::{Events, Fact};
use flashjob_model::{
    DecoderConfig, Dtype, Encoding, LayerTensor, Model, RowBuffer, Shard, TensorName, Validation, WeightsFormat,
};

/// Threads that read: enough to keep a disk or a bucket busy while one of them packs. They wait more than they work.
const READERS: usize = 8;

/// One rank's part of the weights, and the format that it is wanted in.
#[derive(Clone, Copy, Debug)]
pub struct ShardFormat {
    /// One rank's part.
    pub shard: Shard,
    /// Format of matrices; vectors are always single precision.
    pub format: WeightsFormat,
    /// Check of the numbers while they are read.
    pub validation: Validation,
}

/// Reads once what one rank holds of `model`, and packs it on each of `devices`, those of the same rank of each engine; weights are in
/// their order. `total_bytes` are those of all ranks of an engine here.
///
/// # Errors
/// [`Error::Cancelled`] within a few megabytes; [`Error::Model`] when a file cannot be read.
pub fn load(
    model: &Model,
    wanted: ShardFormat,
    devices: &[Arc<dyn Device>],
    total_bytes: u64,
    events: &Events,
    cancel: &CancellationToken,
) -> Result<Vec<DecoderWeights>, Error> {
    // Reading and packing overlap: eight threads wait for the bucket in turn, while those with bytes pack them.
    let progress = Progress { events, cancel, total_bytes, turn: Mutex::default() };
    let loaded = Reading::new(model, wanted, devices)?.read_all(&progress)?;
    loaded.into_iter().map(|tensors| tensors.into_weights(&model.config)).collect()
}

/// Bytes that these ranks read together.
///
/// # Errors
/// [`Error::Model`]: the model cannot be split so.
pub fn total_bytes(model: &Model, shards: impl Iterator<Item = Shard>) -> Result<u64, Error> {
    let of = |shard| model.weights.tensors().map(move |tensor| model.weights.stored_bytes(tensor, shard));
    Ok(shards.flat_map(of).sum::<Result<u64, _>>()?)
}

/// The tensor on top of which `tensor` stands in a matrix of several; the tensor itself where it comes first.
fn first_of_matrix(tensor: TensorName) -> TensorName {
    use LayerTensor::{Gate, K, Q, Up, V};
    match tensor {
        TensorName::Layer(layer, K | V) => TensorName::Layer(layer, Q),
        TensorName::Layer(layer, Up) => TensorName::Layer(layer, Gate),
        alone => alone,
    }
}

/// Progress of reading, reported as facts.
struct Progress<'a> {
    events: &'a Events,
    cancel: &'a CancellationToken,
    total_bytes: u64,
    /// Held while something is reported: nothing is after it was cancelled.
    turn: Mutex<()>,
}

impl Progress<'_> {
    fn report(&self, bytes: u64) -> Result<(), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.events.emit(Fact::WeightsRead { bytes, total_bytes: self.total_bytes });
        Ok(())
    }
}

/// Work of one thread at a time.
enum Task {
    /// Reads a vector.
    Vector(TensorName),
    /// Reads `rows` of what the rank holds of `tensor`, whose first row is `first_row` of `matrix`.
    Rows { tensor: TensorName, encoding: Encoding, rows: Range<usize>, matrix: usize, first_row: usize },
}

/// Tensors of one matrix: rows in each encoding, one below the other.
struct StackedRows {
    first: TensorName,
    columns: usize,
    rows: Vec<(Encoding, usize)>,
}

/// Everything there is to read, and where it goes.
struct Reading<'a> {
    model: &'a Model,
    wanted: ShardFormat,
    devices: &'a [Arc<dyn Device>],
    tasks: Vec<Task>,
    /// By their first tensors, and of each device.
    matrices: Vec<(TensorName, Vec<Box<dyn MatrixBuilder>>)>,
    vectors: Mutex<HashMap<TensorName, Tensor>>,
}

impl<'a> Reading<'a> {
    fn new(model: &'a Model, wanted: ShardFormat, devices: &'a [Arc<dyn Device>]) -> Result<Self, Error> {
        let (mut tasks, mut matrices) = (Vec::new(), Vec::<StackedRows>::new());
        for tensor in model.weights.tensors() {
            // Announced in this order, which is the order of reading: the mount fetches ahead of the readers.
            model.weights.will_read(tensor, wanted.shard)?;
            if model.config.shape(tensor).len() == 1 {
                tasks.push(Task::Vector(tensor));
                continue;
            }
            let [rows, columns] = model.weights.shape(tensor, wanted.shard)?;
            let first = first_of_matrix(tensor);
            // From the end: the tensor that it is stacked on was announced just before it.
            let matrix = matrices.iter().rposition(|stacked| stacked.first == first).unwrap_or_else(|| {
                matrices.push(StackedRows { first, columns, rows: Vec::new() });
                matrices.len() - 1
            });
            let encoding = model.weights.kept(tensor, wanted.shard, wanted.format)?;
            let first_row = matrices[matrix].rows.iter().map(|(_, rows)| rows).sum();
            matrices[matrix].rows.push((encoding, rows));
            let runs = model.weights.runs(tensor, wanted.shard)?;
            tasks.extend(runs.map(|rows| Task::Rows { tensor, encoding, rows, matrix, first_row }));
        }
        let room = |StackedRows { first, columns, rows }| {
            let on_each = devices.iter().map(|device| device.matrix(&rows, columns));
            Ok((first, on_each.collect::<candle_core::Result<_>>()?))
        };
        let matrices = matrices.into_iter().map(room).collect::<candle_core::Result<_>>();
        let matrices = matrices.map_err(Error::compute("make room for weights"))?;
        Ok(Self { model, wanted, devices, tasks, matrices, vectors: Mutex::default() })
    }

    /// Tensors by device.
    fn read_all(self, progress: &Progress<'_>) -> Result<Vec<LoadedTensors>, Error> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), Error> {
            let mut buffer = RowBuffer::default();
            // One counter for all threads keeps reads nearly sequential, which is what disks and readahead are good at.
            while let Some(task) = self.tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                let done = self.run(task, &mut buffer).and_then(|bytes| progress.report(bytes));
                // Further tasks are not begun.
                done.inspect_err(|_| next.store(self.tasks.len(), Ordering::Relaxed))?;
            }
            Ok(())
        };
        // Scoped: the first error ends all readers, and a panic of one goes on in the caller.
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS.min(self.tasks.len())).map(|_| scope.spawn(work)).collect();
            let join = |reader: ScopedJoinHandle<'_, _>| reader.join().unwrap_or_else(|panic| resume_unwind(panic));
            readers.into_iter().map(join).fold(Ok(()), Result::and)
        })?;
        let vectors = self.vectors.into_inner().unwrap_or_else(PoisonError::into_inner);
        let on = |device: &Arc<dyn Device>| LoadedTensors {
            matrices: HashMap::new(),
            vectors: vectors.clone(),
            device: device.candle().clone(),
        };
        let mut loaded: Vec<LoadedTensors> = self.devices.iter().map(on).collect();
        for (name, matrices) in self.matrices {
            for (tensors, matrix) in loaded.iter_mut().zip(matrices) {
                tensors.matrices.insert(name, matrix);
            }
        }
        Ok(loaded)
    }

    /// Returns the bytes that were read.
    fn run(&self, task: &Task, buffer: &mut RowBuffer) -> Result<u64, Error> {
        let (weights, ShardFormat { shard, validation, .. }) = (&self.model.weights, self.wanted);
        match task {
            &Task::Vector(tensor) => {
                let vector = weights.read(tensor, shard, Dtype::F32, validation)?;
                self.vectors.lock().unwrap_or_else(PoisonError::into_inner).insert(tensor, vector);
                Ok(weights.stored_bytes(tensor, shard)?)
            }
            // The buffer is used only where bytes must be decoded; otherwise rows are borrowed from where they lie.
            Task::Rows { tensor, encoding, rows, matrix, first_row } => {
                // Rows are packed while they are in this core's cache: a second pass over the weights would cost as much as reading them.
                let (read, bytes) = weights.read_rows(*tensor, shard, rows.clone(), *encoding, validation, buffer)?;
                for matrix in &self.matrices[*matrix].1 {
                    let placed = matrix.rows(first_row + rows.start, read.numbers());
                    placed.map_err(Error::compute("place weights"))?;
                }
                Ok(bytes)
            }
        }
    }
}

/// Everything that was read for one device, until it is taken.
struct LoadedTensors {
    /// By their first tensors.
    matrices: HashMap<TensorName, Box<dyn MatrixBuilder>>,
    /// Vectors, on the host.
    vectors: HashMap<TensorName, Tensor>,
    device: CandleDevice,
}

impl LoadedTensors {
    fn into_weights(mut self, config: &DecoderConfig) -> Result<DecoderWeights, Error> {
        let embedding: Arc<dyn Linear> = Arc::from(self.matrix(TensorName::Embedding, &[])?);
        let layers = (0..config.layers).map(|layer| self.layer(layer, config)).collect::<Result<_, Error>>()?;
        let final_norm = self.vector(TensorName::FinalNorm)?;
        // Shared, not loaded twice: a large vocabulary is a good part of a small model.
        let tied = config.tied_head;
        let head = if tied { Arc::clone(&embedding) } else { Arc::from(self.matrix(TensorName::Head, &[])?) };
        Ok(DecoderWeights { embedding, layers, final_norm, head })
    }

    fn layer(&mut self, layer: usize, config: &DecoderConfig) -> Result<LayerWeights, Error> {
        use LayerTensor::{AttentionOutputNorm, FeedForwardNorm, FeedForwardOutputNorm, InputNorm};
        use LayerTensor::{Down, Gate, KBias, KNorm, O, Q, QBias, QNorm, VBias};
        let name = |tensor| TensorName::Layer(layer, tensor);
        let biases = [QBias, KBias, VBias].map(name);
        let biases = if config.qkv_bias { &biases[..] } else { &[] };
        Ok(LayerWeights {
            input_norm: self.vector(name(InputNorm))?,
            qkv: self.matrix(name(Q), biases)?,
            qk_norms: if config.qk_norm { Some([self.vector(name(QNorm))?, self.vector(name(KNorm))?]) } else { None },
            o: self.matrix(name(O), &[])?,
            attention_output_norm: self.vector_if(config.output_norms, name(AttentionOutputNorm))?,
            feed_forward_norm: self.vector(name(FeedForwardNorm))?,
            gate_up: self.matrix(name(Gate), &[])?,
            down: self.matrix(name(Down), &[])?,
            feed_forward_output_norm: self.vector_if(config.output_norms, name(FeedForwardOutputNorm))?,
        })
    }

    fn vector(&mut self, name: TensorName) -> Result<Tensor, Error> {
        self.on_host(name).to_device(&self.device).map_err(Error::compute("place weights"))
    }

    fn vector_if(&mut self, there: bool, name: TensorName) -> Result<Option<Tensor>, Error> {
        there.then(|| self.vector(name)).transpose()
    }

    fn on_host(&mut self, name: TensorName) -> Tensor {
        self.vectors.remove(&name).expect("every tensor of a configuration is read")
    }

    /// The product with the matrix that begins with `first`; `biases` are stacked as the parts of its rows are.
    fn matrix(&mut self, first: TensorName, biases: &[TensorName]) -> Result<Box<dyn Linear>, Error> {
        let matrix = self.matrices.remove(&first).expect("every tensor of a configuration is read");
        let biases: Vec<Tensor> = biases.iter().map(|&bias| self.on_host(bias)).collect();
        let stack = || Tensor::cat(&biases, 0)?.to_device(&self.device);
        let bias = (!biases.is_empty()).then(stack).transpose().map_err(Error::compute("stack biases"))?;
        Ok(matrix.finish(bias))
    }
}

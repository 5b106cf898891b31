//! The device of a rank: its memory, and the operations of a forward pass.
//!
//! The engine has one implementation, on processors (`cpu`); the package `flashjob-cuda` has another. Each operation is one call on
//! tensors of the device, whose shapes are the decoder's to keep, and allocates nothing. `ops` has the arguments, and `platform`
//! how devices of a kind come to be. What a forward pass is made of is not known here.

pub mod operation;
pub mod ops;
pub mod platform;

use candle_core::{Device as CandleDevice, Result, Tensor};

use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use flashjob_cpu::{Pool, RopeTable, TokenLogprobs};
use flashjob_model::{Dtype, Encoding, RowSlice};
use operation::{Operation, OperationTime};
use ops::{AddRmsNorm, Attention, Embed, Gated, GatherRows, MaskLogits, NormHeads, RopeAndCache, Sample, Turn};

/// The device of one rank. Operations are queued in order, and may return before they are done: [`Device::wait`] waits.
pub trait Device: Send + Sync {
    /// The device as candle names it: vectors of weights are placed there.
    fn candle(&self) -> &CandleDevice;

    /// CPU threads of the rank, or of its device's host.
    fn pool(&self) -> &Pool;

    /// Bytes that may still be allocated there; `None` where the system does not say.
    ///
    /// # Errors
    /// The driver's, of a device that has one.
    fn free_bytes(&self) -> Result<Option<u64>>;

    /// `[count]` zeros.
    ///
    /// # Errors
    /// Memory that is refused.
    fn zeros(&self, count: usize, dtype: Dtype) -> Result<Tensor>;

    /// Room for the weights of a product, `[out, in]`: so many of its rows in each encoding, one below the other, where the device has
    /// a choice.
    ///
    /// # Errors
    /// Memory that is refused.
    fn matrix(&self, rows: &[(Encoding, usize)], in_: usize) -> Result<Box<dyn MatrixBuilder>>;

    /// Rotary embedding with these angles.
    ///
    /// # Errors
    /// Memory that is refused.
    fn rotary(&self, table: RopeTable) -> Result<Box<dyn RotaryEmbedding>>;

    /// Makes `step` the one that operations read, and has `queue` queue all of it, unless a recording of a step of its size
    /// ([`ForwardBatch::replay`]) does as well.
    ///
    /// # Errors
    /// Those of `queue`, and [`Error::Compute`] of the device itself.
    fn compute(
        &self,
        step: &ForwardBatch,
        queue: &mut dyn FnMut() -> std::result::Result<(), Error>,
    ) -> std::result::Result<(), Error>;

    /// Returns when nothing that was begun is still under way.
    ///
    /// # Errors
    /// The failure of an operation that was under way.
    fn wait(&self) -> Result<()>;

    /// Says that what is queued next is `operation`, until [`Device::end`]: for times, and for profilers that are attached.
    ///
    /// # Errors
    /// The driver's, of a device that has one.
    fn begin(&self, operation: Operation) -> Result<()>;

    /// Says that `operation` is queued.
    ///
    /// # Errors
    /// The driver's, of a device that has one.
    fn end(&self, operation: Operation) -> Result<()>;

    /// Times each operation that is begun from now on. Of a step that is recorded or replayed there are none to be timed.
    ///
    /// # Errors
    /// The driver's, of a device that has one.
    fn time_operations(&self) -> Result<()>;

    /// Ends [`Device::time_operations`]: waits, and gives the times in the order of the operations.
    ///
    /// # Errors
    /// The failure of an operation that was under way.
    fn operation_times(&self) -> Result<Vec<OperationTime>>;

    /// `residual += delta`, or its norm where there is a weight for that; `normed = rms_norm(residual) · weight`.
    ///
    /// # Errors
    /// Tensors of another device or type, and the driver's.
    fn add_rms_norm(&self, op: &AddRmsNorm<'_>) -> Result<()>;

    /// RMSNorm of each head of q and of k, by itself.
    ///
    /// # Errors
    /// As [`Device::add_rms_norm`].
    fn norm_heads(&self, op: &NormHeads<'_>) -> Result<()>;

    /// PagedAttention: prefill, chunked prefill and decode in one call.
    ///
    /// # Errors
    /// As [`Device::add_rms_norm`].
    fn attention(&self, op: &Attention<'_>) -> Result<()>;

    /// `activation(gate) · up`.
    ///
    /// # Errors
    /// As [`Device::add_rms_norm`].
    fn gated(&self, op: &Gated<'_>) -> Result<()>;

    /// Copies the rows whose logits are wanted.
    ///
    /// # Errors
    /// As [`Device::add_rms_norm`].
    fn gather_rows(&self, op: &GatherRows<'_>) -> Result<()>;

    /// Each number `x` becomes `cap · tanh(x / cap)`.
    ///
    /// # Errors
    /// As [`Device::add_rms_norm`].
    fn softcap(&self, numbers: &Tensor, cap: f32) -> Result<()>;

    /// Keeps tokens from being chosen that a mask does not allow, before [`Device::sample`].
    ///
    /// # Errors
    /// As [`Device::add_rms_norm`].
    fn mask_logits(&self, op: &MaskLogits<'_>) -> Result<()>;

    /// Chooses the next token of each sequence that is to get one, as [`choose_tokens`] does on the CPU: bit for bit the same from the
    /// same logits. [`Device::read_tokens`] gives them, and [`Device::read_logprobs`] log-probabilities where rows want some.
    ///
    /// [`choose_tokens`]: flashjob_cpu::choose_tokens
    ///
    /// # Errors
    /// As [`Device::add_rms_norm`].
    fn sample(&self, op: &Sample<'_>) -> Result<()>;

    /// Waits for the tokens that were chosen last in this `turn`, and copies as many of them as `tokens` is long.
    ///
    /// # Errors
    /// The failure of an operation that was under way.
    fn read_tokens(&self, turn: Turn, tokens: &mut [u32]) -> Result<()>;

    /// Gives the log-probabilities of the step whose `tokens` were read last, of the rows that want them and have a token. No other step
    /// that wants some is queued before that.
    ///
    /// # Errors
    /// The failure of an operation that was under way.
    fn read_logprobs(&self, turn: Turn, tokens: &[u32], logprobs: &mut Vec<(usize, TokenLogprobs)>) -> Result<()>;

    /// As [`Device::sample`], announced as [`Operation::Sampling`].
    ///
    /// # Errors
    /// As there.
    fn choose(&self, op: &Sample<'_>) -> Result<()> {
        self.begin(Operation::Sampling)?;
        self.sample(op)?;
        self.end(Operation::Sampling)
    }

    /// True where a step may be queued before the tokens of the one before it are read: operations may return before they are done, and
    /// [`Linear::embed`] finds tokens where [`Device::sample`] leaves them ([`ForwardBatch::push_chosen`]).
    fn runs_ahead(&self) -> bool {
        false
    }
}

/// Weights on the way to a device: rows come from any thread, and are copied or packed while they are in its cache.
pub trait MatrixBuilder: Send + Sync {
    /// Places whole rows, of which `first` is the first.
    ///
    /// # Errors
    /// The driver's, of a device that has one.
    fn rows(&self, first: usize, rows: RowSlice<'_>) -> Result<()>;

    /// The product with these weights and a bias `[out]`, which is on the device.
    fn finish(self: Box<Self>, bias: Option<Tensor>) -> Box<dyn Linear>;
}

/// A product with weights, `y = x · Wᵀ + bias`, in the layout of its device.
pub trait Linear: Send + Sync {
    /// Bytes of the matrix and its bias.
    fn bytes(&self) -> u64;

    /// From `[rows, in]` into `[rows, out]`, which is overwritten.
    ///
    /// # Errors
    /// As [`Device::add_rms_norm`].
    fn forward(&self, x: &Tensor, y: &Tensor) -> Result<()>;

    /// Token ids become rows of the matrix, which is an embedding.
    ///
    /// # Errors
    /// As [`Device::add_rms_norm`].
    fn embed(&self, op: &Embed<'_>) -> Result<()>;
}

/// Rotary position embedding with the angles of one kind of layer.
pub trait RotaryEmbedding: Send + Sync {
    /// Rotates q and k in place by their positions, and writes k and v to the cache at the step's slots.
    ///
    /// # Errors
    /// As [`Device::add_rms_norm`].
    fn rope_and_cache(&self, op: &RopeAndCache<'_>) -> Result<()>;
}

//! Memory for activations, allocated once for the largest step and lent to each step as views of its size.
//!
//! A steady decode has the same number of rows step after step: then even the views stay. This file knows shapes, not
//! what is computed.

use candle_core::{Result, Tensor};

use crate::device::Device;
use crate::schedule::limits::EngineLimits;
use flashjob_model::Dtype;

/// Widths of one rank's activations.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    /// The residual stream.
    pub hidden: usize,
    /// q, k and v side by side.
    pub qkv: usize,
    /// All heads of attention's result.
    pub attended: usize,
    /// The feed-forward layer.
    pub intermediate: usize,
    /// This rank's logits.
    pub vocabulary: usize,
    /// The logits of all ranks, where this one gets them; 0 where they are its own, or another's.
    pub gathered: usize,
}

/// Single-precision buffers for the largest step, and views of the present one.
pub struct Workspace {
    whole: Views,
    views: Views,
}

/// Activations of a step. After the last layer's attention only the wanted rows go on.
#[derive(Clone)]
pub struct Views {
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`.
    pub qkv: Tensor,
    /// Activations of all `tokens` rows.
    pub all: Rows,
    /// Activations of the rows whose logits are wanted: `all` itself where those are all.
    pub wanted: Rows,
    /// `[wanted, vocabulary]`.
    pub logits: Tensor,
    /// `[wanted, gathered]`, where that is anything.
    pub gathered: Option<Tensor>,
    /// Tokens, and rows whose logits are wanted.
    size: [usize; 2],
}

/// Activations of some rows.
#[derive(Clone)]
pub struct Rows {
    /// `[rows, hidden]`: the residual stream.
    pub residual: Tensor,
    /// `[rows, hidden]`: the residual stream, normalised.
    pub normed: Tensor,
    /// `[rows, heads · head_dim]`: attention's result.
    pub attended: Tensor,
    /// `[rows, hidden]`: what is added to the residual stream next.
    pub delta: Tensor,
    /// `[rows, 2 · intermediate]`.
    pub gate_up: Tensor,
    /// `[rows, intermediate]`.
    pub activated: Tensor,
}

impl Workspace {
    /// Buffers for steps within `limits`: of `dtype`, but for the residual stream and the logits, which are always
    /// single precision.
    pub fn new(widths: Widths, limits: &EngineLimits, dtype: Dtype, device: &dyn Device) -> Result<Self> {
        let [tokens, wanted] = [limits.max_num_batched_tokens, limits.max_num_logits()];
        let of = |dtype, rows, width| device.zeros(rows * width, dtype)?.reshape((rows, width));
        let wide = |rows, width| of(Dtype::F32, rows, width);
        let buffer = |rows, width| of(dtype, rows, width);
        let all = Rows {
            residual: wide(tokens, widths.hidden)?,
            normed: buffer(tokens, widths.hidden)?,
            attended: buffer(tokens, widths.attended)?,
            delta: buffer(tokens, widths.hidden)?,
            gate_up: buffer(tokens, 2 * widths.intermediate)?,
            activated: buffer(tokens, widths.intermediate)?,
        };
        // Only what rows are gathered into needs memory of its own.
        let wanted_rows =
            Rows { residual: wide(wanted, widths.hidden)?, attended: buffer(wanted, widths.attended)?, ..all.clone() };
        let qkv = buffer(tokens, widths.qkv)?;
        let logits = wide(wanted, widths.vocabulary)?;
        let gathered = (widths.gathered > 0).then(|| wide(wanted, widths.gathered)).transpose()?;
        let whole = Views { qkv, all, wanted: wanted_rows, logits, gathered, size: [tokens, wanted] };
        // No step is of this size: the first one makes its own views.
        let views = Views { size: [0, 0], ..whole.clone() };
        Ok(Self { views, whole })
    }

    /// Bytes that [`Self::new`] will allocate.
    pub fn bytes(widths: Widths, limits: &EngineLimits, dtype: Dtype) -> u64 {
        let (wide, narrow) = (size_of::<f32>(), dtype.size_bytes());
        let token = wide * widths.hidden
            + narrow * (2 * widths.hidden + widths.attended + 3 * widths.intermediate + widths.qkv);
        let logits_row = wide * (widths.hidden + widths.vocabulary + widths.gathered) + narrow * widths.attended;
        // Settings may ask for more rows than any machine holds: the answer must then be large, not wrong.
        let [tokens, wanted] = [limits.max_num_batched_tokens, limits.max_num_logits()];
        tokens.saturating_mul(token).saturating_add(wanted.saturating_mul(logits_row)) as u64
    }

    /// Views of `tokens` rows, of which `wanted` get logits; both within what it was made for, `wanted` at least 1.
    pub fn fit(&mut self, tokens: usize, wanted: usize) -> Result<&Views> {
        // Views allocate their shapes: a steady decode keeps them, and so allocates nothing in a step.
        if self.views.size != [tokens, wanted] {
            let all = self.whole.all.first(tokens)?;
            self.views = Views {
                qkv: self.whole.qkv.narrow(0, 0, tokens)?,
                wanted: if wanted == tokens { all.clone() } else { self.whole.wanted.first(wanted)? },
                all,
                logits: self.whole.logits.narrow(0, 0, wanted)?,
                gathered: self.whole.gathered.as_ref().map(|logits| logits.narrow(0, 0, wanted)).transpose()?,
                size: [tokens, wanted],
            };
        }
        Ok(&self.views)
    }
}

impl Rows {
    fn first(&self, rows: usize) -> Result<Self> {
        let first = |tensor: &Tensor| tensor.narrow(0, 0, rows);
        Ok(Self {
            residual: first(&self.residual)?,
            normed: first(&self.normed)?,
            attended: first(&self.attended)?,
            delta: first(&self.delta)?,
            gate_up: first(&self.gate_up)?,
            activated: first(&self.activated)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::device::CpuDevice;
    use flashjob_cpu::Pool;
    use std::sync::Arc;

    fn cpu() -> CpuDevice {
        CpuDevice::new(Arc::new(Pool::new(1)))
    }

    const WIDTHS: Widths = Widths { hidden: 8, qkv: 12, attended: 6, intermediate: 10, vocabulary: 20, gathered: 40 };
    const LIMITS: EngineLimits = EngineLimits {
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_model_len: 64,
        block_size: 32,
        num_blocks: 2,
        num_spare_blocks: 0,
        vocab_size: 40,
    };

    #[test]
    fn views_stay_while_the_step_keeps_its_size() {
        let mut workspace = Workspace::new(WIDTHS, &LIMITS, Dtype::F32, &cpu()).unwrap();
        let ids = |views: &Views| [&views.qkv, &views.all.delta, &views.wanted.residual, &views.logits].map(Tensor::id);
        let first = ids(workspace.fit(4, 4).unwrap());
        assert_eq!(ids(workspace.fit(4, 4).unwrap()), first);
        assert_ne!(ids(workspace.fit(5, 4).unwrap()), first);
    }

    #[test]
    fn rows_that_are_gathered_have_memory_of_their_own() {
        let mut workspace = Workspace::new(WIDTHS, &LIMITS, Dtype::F32, &cpu()).unwrap();
        let views = workspace.fit(16, 3).unwrap();
        assert_eq!(views.all.residual.dims(), [16, 8]);
        assert_eq!(views.wanted.residual.dims(), [3, 8]);
        assert_eq!(views.wanted.gate_up.dims(), [3, 20]);
        assert_eq!(views.logits.dims(), [3, 20]);
        for (wanted, all) in
            [(&views.wanted.residual, &views.all.residual), (&views.wanted.attended, &views.all.attended)]
        {
            wanted.ones_like().and_then(|ones| wanted.slice_set(&ones, 0, 0)).unwrap();
            let sum = all.sum_all().and_then(|sum| sum.to_scalar::<f32>()).unwrap();
            assert_eq!(sum, 0.0, "they share memory");
        }
        let views = workspace.fit(3, 3).unwrap();
        assert_eq!(views.wanted.residual.id(), views.all.residual.id(), "nothing to gather");
    }

    #[test]
    fn the_largest_step_may_come_first() {
        let mut workspace = Workspace::new(WIDTHS, &LIMITS, Dtype::F32, &cpu()).unwrap();
        let views = workspace.fit(16, 4).unwrap();
        assert_eq!((views.all.delta.dims(), views.wanted.delta.dims()), (&[16, 8][..], &[4, 8][..]));
        assert_eq!((views.wanted.normed.dims(), views.wanted.activated.dims()), (&[4, 8][..], &[4, 10][..]));
    }

    #[test]
    fn its_size_is_known_beforehand() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let workspace = Workspace::new(WIDTHS, &LIMITS, dtype, &cpu()).unwrap();
            let Views { qkv, all, wanted, logits, gathered, .. } = &workspace.whole;
            let Rows { residual, normed, attended, delta, gate_up, activated } = all;
            let wide = [residual, &wanted.residual, logits, gathered.as_ref().unwrap()];
            let others = [qkv, normed, attended, delta, gate_up, activated, &wanted.attended];
            let bytes = |tensor: &&Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
            let all: usize = wide.iter().chain(&others).map(bytes).sum();
            assert_eq!(Workspace::bytes(WIDTHS, &LIMITS, dtype), all as u64);
            assert!(wide.iter().all(|tensor| tensor.dtype() == candle_core::DType::F32));
            assert!(others.iter().all(|tensor| tensor.dtype() == dtype.into()));
        }
        let absurd = EngineLimits { max_num_batched_tokens: usize::MAX, max_num_seqs: 1, ..LIMITS };
        assert!(Workspace::bytes(WIDTHS, &absurd, Dtype::F32) > 1 << 62);
    }
}

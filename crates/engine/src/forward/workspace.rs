//! Memory for activations, allocated once for the largest step and lent to each step as views of its size.
//!
//! A steady decode has the same number of rows step after step: then even the views stay. This file knows shapes, not
//! what is computed.

use candle_core::{Device, Result, Tensor};

use crate::start::host_memory;
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

/// The most rows of a step.
#[derive(Clone, Copy, Debug)]
pub struct MostRows {
    /// Tokens.
    pub tokens: usize,
    /// Rows whose logits are wanted.
    pub wanted: usize,
}

/// Single-precision buffers for the largest step, and views of the present one.
pub struct Workspace {
    whole: Views,
    views: Views,
}

/// What a step computes in. After the last layer's attention only the wanted rows go on.
#[derive(Clone)]
pub struct Views {
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`.
    pub qkv: Tensor,
    /// Of `tokens` rows.
    pub all: Rows,
    /// Of as many rows as logits are wanted of: `all` itself where those are all.
    pub wanted: Rows,
    /// `[wanted, vocabulary]`.
    pub logits: Tensor,
    /// `[wanted, gathered]`, where that is anything.
    pub gathered: Option<Tensor>,
    most: MostRows,
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
    /// Buffers for steps of up to `most` rows: of `dtype`, but for the residual stream and the logits, which are always
    /// single precision.
    pub fn new(widths: Widths, most: MostRows, dtype: Dtype, device: &Device) -> Result<Self> {
        let of = |dtype: Dtype, rows: usize, width: usize| -> Result<Tensor> {
            match device.is_cpu() {
                true => host_memory::zeros(rows * width, dtype)?.reshape((rows, width)),
                false => Tensor::zeros((rows, width), dtype.into(), device),
            }
        };
        let wide = |rows, width| of(Dtype::F32, rows, width);
        let buffer = |rows, width| of(dtype, rows, width);
        let all = Rows {
            residual: wide(most.tokens, widths.hidden)?,
            normed: buffer(most.tokens, widths.hidden)?,
            attended: buffer(most.tokens, widths.attended)?,
            delta: buffer(most.tokens, widths.hidden)?,
            gate_up: buffer(most.tokens, 2 * widths.intermediate)?,
            activated: buffer(most.tokens, widths.intermediate)?,
        };
        // Only what rows are gathered into needs memory of its own.
        let wanted = Rows {
            residual: wide(most.wanted, widths.hidden)?,
            attended: buffer(most.wanted, widths.attended)?,
            ..all.clone()
        };
        let qkv = buffer(most.tokens, widths.qkv)?;
        let logits = wide(most.wanted, widths.vocabulary)?;
        let gathered = (widths.gathered > 0).then(|| wide(most.wanted, widths.gathered)).transpose()?;
        let whole = Views { qkv, all, wanted, logits, gathered, most };
        // No step is of this size: the first one makes its own views.
        let views = Views { most: MostRows { tokens: 0, wanted: 0 }, ..whole.clone() };
        Ok(Self { views, whole })
    }

    /// Bytes that [`Self::new`] will allocate.
    pub fn bytes(widths: Widths, most: MostRows, dtype: Dtype) -> u64 {
        let (wide, narrow) = (size_of::<f32>(), dtype.size_bytes());
        let token = wide * widths.hidden
            + narrow * (2 * widths.hidden + widths.attended + 3 * widths.intermediate + widths.qkv);
        let wanted = wide * (widths.hidden + widths.vocabulary + widths.gathered) + narrow * widths.attended;
        // Settings may ask for more rows than any machine holds: the answer must then be large, not wrong.
        most.tokens.saturating_mul(token).saturating_add(most.wanted.saturating_mul(wanted)) as u64
    }

    /// Views of `tokens` rows, of which `wanted` get logits; both within what it was made for, `wanted` at least 1.
    pub fn fit(&mut self, tokens: usize, wanted: usize) -> Result<&Views> {
        if (self.views.most.tokens, self.views.most.wanted) != (tokens, wanted) {
            let all = self.whole.all.first(tokens)?;
            self.views = Views {
                qkv: self.whole.qkv.narrow(0, 0, tokens)?,
                wanted: if wanted == tokens { all.clone() } else { self.whole.wanted.first(wanted)? },
                all,
                logits: self.whole.logits.narrow(0, 0, wanted)?,
                gathered: self.whole.gathered.as_ref().map(|logits| logits.narrow(0, 0, wanted)).transpose()?,
                most: MostRows { tokens, wanted },
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

    const WIDTHS: Widths = Widths { hidden: 8, qkv: 12, attended: 6, intermediate: 10, vocabulary: 20, gathered: 40 };
    const MOST: MostRows = MostRows { tokens: 16, wanted: 4 };

    #[test]
    fn views_stay_while_the_step_keeps_its_size() {
        let mut workspace = Workspace::new(WIDTHS, MOST, Dtype::F32, &Device::Cpu).unwrap();
        let ids = |views: &Views| [&views.qkv, &views.all.delta, &views.wanted.residual, &views.logits].map(Tensor::id);
        let first = ids(workspace.fit(4, 4).unwrap());
        assert_eq!(ids(workspace.fit(4, 4).unwrap()), first);
        assert_ne!(ids(workspace.fit(5, 4).unwrap()), first);
    }

    #[test]
    fn rows_that_are_gathered_have_memory_of_their_own() {
        let mut workspace = Workspace::new(WIDTHS, MOST, Dtype::F32, &Device::Cpu).unwrap();
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
        let mut workspace = Workspace::new(WIDTHS, MOST, Dtype::F32, &Device::Cpu).unwrap();
        let views = workspace.fit(MOST.tokens, MOST.wanted).unwrap();
        assert_eq!((views.all.delta.dims(), views.wanted.delta.dims()), (&[16, 8][..], &[4, 8][..]));
        assert_eq!((views.wanted.normed.dims(), views.wanted.activated.dims()), (&[4, 8][..], &[4, 10][..]));
    }

    #[test]
    fn its_size_is_known_beforehand() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let workspace = Workspace::new(WIDTHS, MOST, dtype, &Device::Cpu).unwrap();
            let Views { qkv, all, wanted, logits, gathered, .. } = &workspace.whole;
            let Rows { residual, normed, attended, delta, gate_up, activated } = all;
            let wide = [residual, &wanted.residual, logits, gathered.as_ref().unwrap()];
            let others = [qkv, normed, attended, delta, gate_up, activated, &wanted.attended];
            let bytes = |tensor: &&Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
            let all: usize = wide.iter().chain(&others).map(bytes).sum();
            assert_eq!(Workspace::bytes(WIDTHS, MOST, dtype), all as u64);
            assert!(wide.iter().all(|tensor| tensor.dtype() == candle_core::DType::F32));
            assert!(others.iter().all(|tensor| tensor.dtype() == dtype.into()));
        }
        let absurd = MostRows { tokens: usize::MAX, wanted: 1 };
        assert!(Workspace::bytes(WIDTHS, absurd, Dtype::F32) > 1 << 62);
    }
}

//! Memory for activations, allocated once for the largest step and lent to each step as views of its size.
//!
//! A steady decode has the same number of rows step after step: then even the views stay. This file knows shapes, not
//! what is computed.

use candle_core::{DType, Device, Result, Tensor};

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
    /// Logits.
    pub vocabulary: usize,
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
    /// Buffers for steps of up to `most` rows.
    pub fn new(widths: Widths, most: MostRows, device: &Device) -> Result<Self> {
        let buffer = |rows: usize, width: usize| Tensor::zeros((rows, width), DType::F32, device);
        let all = Rows {
            residual: buffer(most.tokens, widths.hidden)?,
            normed: buffer(most.tokens, widths.hidden)?,
            attended: buffer(most.tokens, widths.attended)?,
            delta: buffer(most.tokens, widths.hidden)?,
            gate_up: buffer(most.tokens, 2 * widths.intermediate)?,
            activated: buffer(most.tokens, widths.intermediate)?,
        };
        // Only what rows are gathered into needs memory of its own.
        let wanted = Rows {
            residual: buffer(most.wanted, widths.hidden)?,
            attended: buffer(most.wanted, widths.attended)?,
            ..all.clone()
        };
        let qkv = buffer(most.tokens, widths.qkv)?;
        let logits = buffer(most.wanted, widths.vocabulary)?;
        let whole = Views { qkv, all, wanted, logits, most };
        Ok(Self { views: whole.clone(), whole })
    }

    /// Bytes that [`Self::new`] will allocate.
    pub fn bytes(widths: Widths, most: MostRows) -> u64 {
        let token = 3 * widths.hidden + widths.attended + 3 * widths.intermediate + widths.qkv;
        let wanted = widths.hidden + widths.attended + widths.vocabulary;
        ((most.tokens * token + most.wanted * wanted) * size_of::<f32>()) as u64
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

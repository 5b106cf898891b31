//! The operations of a forward pass by the threads of a pool.

use std::sync::Arc;

use candle_core::{Device as CandleDevice, Result, Tensor, bail};
use parking_lot::Mutex;

use super::access::{Operand, cache_mut, change, floats_mut};
use super::clock::OperationClock;
use super::host_memory;
use super::linear::PackedBuilder;
use crate::device::operation::{Operation, OperationTime};
use crate::device::ops::{AddRmsNorm, Attention, Gated, GatherRows, MaskLogits, NormHeads, RopeAndCache, Sample, Turn};
use crate::device::{Device, MatrixBuilder, RotaryEmbedding};
use crate::error::Error;
use crate::forward::batch::ForwardBatch;
use flashjob_cpu::{
    AddedRows, AttentionShape, GateActivation, NO_TOKEN, PagedAttention, Pool, RopeTable, TokenLogprobs, add_rms_norm,
    adjust_logits, choose_tokens, gated_activation, head_rms_norm, mask_logits, paged_attention, rope_and_cache,
    row_distributions, softcap,
};
use flashjob_host::cgroup::free_memory_bytes;
use flashjob_model::{Activation, Dtype, Encoding};

/// The threads of one rank.
pub struct CpuDevice {
    pool: Arc<Pool>,
    candle: CandleDevice,
    clock: OperationClock,
    /// Tokens by turn; reused.
    chosen: Mutex<[Vec<u32>; Turn::COUNT]>,
    /// Log-probabilities by turn, with their rows; reused.
    logprobs: Mutex<[Vec<(usize, TokenLogprobs)>; Turn::COUNT]>,
}

impl CpuDevice {
    /// The threads of `pool`.
    pub fn new(pool: Arc<Pool>) -> Self {
        let (clock, chosen, logprobs) = (OperationClock::default(), Mutex::default(), Mutex::default());
        Self { pool, candle: CandleDevice::Cpu, clock, chosen, logprobs }
    }
}

impl Device for CpuDevice {
    fn candle(&self) -> &CandleDevice {
        &self.candle
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(free_memory_bytes())
    }

    fn zeros(&self, count: usize, dtype: Dtype) -> Result<Tensor> {
        host_memory::zeros(count, dtype)
    }

    fn matrix(&self, rows: &[(Encoding, usize)], in_: usize) -> Result<Box<dyn MatrixBuilder>> {
        Ok(Box::new(PackedBuilder::new(&self.pool, rows, in_)))
    }

    fn rotary(&self, table: RopeTable) -> Result<Box<dyn RotaryEmbedding>> {
        Ok(Box::new(CpuRope { pool: Arc::clone(&self.pool), table }))
    }

    /// Computes it at once: kernels read the lists of `step` where they are.
    fn compute(
        &self,
        _step: &ForwardBatch,
        queue: &mut dyn FnMut() -> std::result::Result<(), Error>,
    ) -> std::result::Result<(), Error> {
        queue()
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn begin(&self, _operation: Operation) -> Result<()> {
        self.clock.begin();
        Ok(())
    }

    fn end(&self, operation: Operation) -> Result<()> {
        self.clock.end(operation);
        Ok(())
    }

    fn time_operations(&self) -> Result<()> {
        self.clock.start();
        Ok(())
    }

    fn operation_times(&self) -> Result<Vec<OperationTime>> {
        Ok(self.clock.stop())
    }

    fn add_rms_norm(&self, op: &AddRmsNorm<'_>) -> Result<()> {
        const NAME: &str = "add-rms-norm";
        let weight = Operand::of(op.weight);
        let (delta, delta_norm) = (op.delta.map(Operand::of), op.delta_norm.map(Operand::of));
        let delta_norm = delta_norm.as_ref().map(Operand::floats).transpose()?;
        let delta = match &delta {
            Some(delta) => Some(AddedRows { rows: delta.floats()?, norm: delta_norm }),
            None => None,
        };
        change(op.residual, NAME, |residual, layout| {
            let residual = floats_mut(residual, layout)?;
            change(op.normed, NAME, |normed, layout| {
                add_rms_norm(&self.pool, residual, delta, weight.floats()?, op.eps, floats_mut(normed, layout)?);
                Ok(())
            })
        })
    }

    fn norm_heads(&self, op: &NormHeads<'_>) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim } = op.shape;
        let (q, k, width) = (Operand::of(op.q), Operand::of(op.k), op.shape.qkv_width());
        change(op.qkv, "norm-heads", |qkv, layout| {
            let qkv = floats_mut(qkv, layout)?;
            head_rms_norm(&self.pool, qkv, width, 0, heads, q.floats()?, op.eps);
            head_rms_norm(&self.pool, qkv, width, heads * head_dim, kv_heads, k.floats()?, op.eps);
            Ok(())
        })
    }

    fn attention(&self, op: &Attention<'_>) -> Result<()> {
        let (qkv, keys, values) = (Operand::of(op.qkv), Operand::of(&op.cache.keys), Operand::of(&op.cache.values));
        let arguments = PagedAttention {
            layout: op.settings.layout,
            scale: op.settings.scale,
            q: qkv.floats()?,
            q_stride: op.settings.layout.shape().qkv_width(),
            k_cache: keys.cache()?,
            v_cache: values.cache()?,
            cu_q: op.step.cumulative_queries(),
            cu_k: op.step.cumulative_keys(),
            block_table: op.step.block_table(),
            max_blocks: op.step.max_blocks(),
            window: op.window,
            softcap: op.settings.softcap,
        };
        change(op.out, "paged-attention", |out, layout| {
            paged_attention(&self.pool, &arguments, floats_mut(out, layout)?);
            Ok(())
        })
    }

    fn gated(&self, op: &Gated<'_>) -> Result<()> {
        let activation = match op.activation {
            Activation::Silu => GateActivation::Silu,
            Activation::GeluTanh => GateActivation::GeluTanh,
        };
        let (gate_up, width) = (Operand::of(op.gate_up), op.activated.dim(1)?);
        change(op.activated, "gated-activation", |activated, layout| {
            gated_activation(&self.pool, gate_up.floats()?, width, activation, floats_mut(activated, layout)?);
            Ok(())
        })
    }

    fn gather_rows(&self, op: &GatherRows<'_>) -> Result<()> {
        let (from, width) = (Operand::of(op.from), op.to.dim(1)?);
        change(op.to, "gather-rows", |to, layout| {
            let (from, to) = (from.floats()?, floats_mut(to, layout)?.chunks_exact_mut(width));
            // A few rows: waking other threads would take longer than copying them.
            for (to, &row) in to.zip(op.step.logit_rows()) {
                let start = row as usize * width;
                to.copy_from_slice(&from[start..start + width]);
            }
            Ok(())
        })
    }

    fn softcap(&self, numbers: &Tensor, cap: f32) -> Result<()> {
        change(numbers, "softcap", |numbers, layout| {
            softcap(&self.pool, floats_mut(numbers, layout)?, cap);
            Ok(())
        })
    }

    fn mask_logits(&self, op: &MaskLogits<'_>) -> Result<()> {
        let width = op.logits.dim(1)?;
        change(op.logits, "mask-logits", |logits, layout| {
            mask_logits(&self.pool, floats_mut(logits, layout)?, width, op.masks.rows(), op.masks.bits());
            Ok(())
        })
    }

    fn sample(&self, op: &Sample<'_>) -> Result<()> {
        let (step, width) = (op.step, op.logits.dim(1)?);
        let (adjustments, wanted) = (step.adjustments(), step.logprobs());
        let distributions = match wanted.is_empty() {
            true => Vec::new(),
            false => row_distributions(&self.pool, Operand::of(op.logits).floats()?, width, wanted, adjustments),
        };
        // In place: nothing reads these logits once a token is chosen, and the next step overwrites them.
        if !adjustments.rows().is_empty() {
            change(op.logits, "adjust-logits", |logits, layout| {
                adjust_logits(&self.pool, floats_mut(logits, layout)?, width, adjustments);
                Ok(())
            })?;
        }
        let logits = Operand::of(op.logits);
        let tokens = &mut self.chosen.lock()[op.turn.index()];
        tokens.resize(step.choices().len(), 0);
        choose_tokens(&self.pool, logits.floats()?, width, step.choices(), tokens);
        if distributions.is_empty() {
            return Ok(());
        }
        let of_rows = &mut self.logprobs.lock()[op.turn.index()];
        for distribution in distributions {
            let row = distribution.row();
            if tokens[row] != NO_TOKEN {
                of_rows.push((row, distribution.of_token(tokens[row], logits.floats()?, width)));
            }
        }
        Ok(())
    }

    /// They are there: everything is computed at once. So nothing would be gained by a step that is queued ahead.
    fn read_tokens(&self, turn: Turn, tokens: &mut [u32]) -> Result<()> {
        let chosen = &self.chosen.lock()[turn.index()];
        match chosen.get(..tokens.len()) {
            Some(chosen) => tokens.copy_from_slice(chosen),
            None => bail!("{} tokens were chosen, and {} are asked for", chosen.len(), tokens.len()),
        }
        Ok(())
    }

    fn read_logprobs(&self, turn: Turn, _tokens: &[u32], logprobs: &mut Vec<(usize, TokenLogprobs)>) -> Result<()> {
        logprobs.append(&mut self.logprobs.lock()[turn.index()]);
        Ok(())
    }
}

/// Angles by position, and the threads that rotate by them.
struct CpuRope {
    pool: Arc<Pool>,
    table: RopeTable,
}

impl RotaryEmbedding for CpuRope {
    fn rope_and_cache(&self, op: &RopeAndCache<'_>) -> Result<()> {
        const NAME: &str = "rope-and-cache";
        change(op.qkv, NAME, |qkv, layout| {
            let qkv = floats_mut(qkv, layout)?;
            change(&op.cache.keys, NAME, |keys, keys_layout| {
                change(&op.cache.values, NAME, |values, values_layout| {
                    let (keys, values) = (cache_mut(keys, keys_layout)?, cache_mut(values, values_layout)?);
                    let (positions, slots) = (op.step.positions(), op.step.slots());
                    rope_and_cache(&self.pool, qkv, op.layout, positions, slots, &self.table, keys, values);
                    Ok(())
                })
            })
        })
    }
}

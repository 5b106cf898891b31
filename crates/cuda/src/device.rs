//! The operations of a forward pass on one GPU: tensors become slices of its memory, and kernels are queued.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device as CandleDevice, Result, Tensor};

use super::attention::PagedQueries;
use super::device_slice::DeviceSlice;
use super::gpu::Gpu;
use super::graph::{GraphKey, Graphs};
use super::launch::{AddRmsNormAt, RopeAt};
use super::linear::Filling;
use super::nvtx;
use super::operation_clock::OperationClock;
use flashjob_cpu::{AttentionShape, Pool, RopeTable, TokenLogprobs};
use flashjob_engine::{
    AddRmsNorm, Attention, Device, Error, ForwardBatch, Gated, GatherRows, MaskLogits, MatrixBuilder, NormHeads,
    Operation, OperationTime, RopeAndCache, RotaryEmbedding, Sample, Turn,
};
use flashjob_model::{Dtype, Encoding};

/// A GPU, and the threads of its host.
pub struct GpuDevice {
    /// Recorded steps, which its rank alone replays; given back before what they read and launch.
    graphs: Mutex<Graphs>,
    gpu: Arc<Gpu>,
    host: Arc<Pool>,
    candle: CandleDevice,
    clock: OperationClock,
}

impl GpuDevice {
    /// `gpu`, which has room for steps; what must be done on the host is done by `host`.
    pub fn new(gpu: Gpu, host: Arc<Pool>) -> Self {
        let clock = OperationClock::default();
        Self { candle: gpu.device(), gpu: Arc::new(gpu), host, graphs: Mutex::default(), clock }
    }

    /// The GPU itself.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

impl Device for GpuDevice {
    fn candle(&self) -> &CandleDevice {
        &self.candle
    }

    fn pool(&self) -> &Pool {
        &self.host
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        // What was given back is free once all that was queued before it is done.
        self.wait()?;
        self.gpu.free_bytes().map(Some)
    }

    fn zeros(&self, count: usize, dtype: Dtype) -> Result<Tensor> {
        Tensor::zeros(count, dtype.into(), &self.candle)
    }

    /// In the number format of activations: cuBLAS multiplies numbers of one format.
    fn matrix(&self, rows: &[(Encoding, usize)], in_: usize) -> Result<Box<dyn MatrixBuilder>> {
        let out = rows.iter().map(|(_, rows)| rows).sum();
        Ok(Box::new(Filling::new(&self.gpu, [out, in_])?))
    }

    fn rotary(&self, RopeTable { cos, sin, dim }: RopeTable) -> Result<Box<dyn RotaryEmbedding>> {
        let upload = |numbers: &[f32]| Tensor::from_slice(numbers, numbers.len(), &self.candle);
        Ok(Box::new(GpuRope { gpu: Arc::clone(&self.gpu), cos: upload(&cos)?, sin: upload(&sin)?, half: dim / 2 }))
    }

    fn compute(
        &self,
        step: &ForwardBatch,
        queue: &mut dyn FnMut() -> std::result::Result<(), Error>,
    ) -> std::result::Result<(), Error> {
        // Outside of the graph, which reads the step where it always lies: so one graph serves all steps of its size.
        nvtx::push_step(step.tokens(), step.sequences());
        let splits_keys = self.gpu.step().upload(step).map_err(Error::compute("upload a step"))?;
        let queued = match step.replay() {
            Some(size) => {
                let mut graphs = self.graphs.lock().unwrap_or_else(PoisonError::into_inner);
                graphs.compute(&self.gpu, GraphKey { size, splits_keys }, queue)
            }
            None => queue(),
        };
        nvtx::pop();
        queued
    }

    fn wait(&self) -> Result<()> {
        self.candle.synchronize()
    }

    fn begin(&self, operation: Operation) -> Result<()> {
        nvtx::push_operation(operation);
        self.clock.begin(&self.gpu, operation)
    }

    fn end(&self, _operation: Operation) -> Result<()> {
        let ended = self.clock.end(&self.gpu);
        nvtx::pop();
        ended
    }

    fn time_operations(&self) -> Result<()> {
        self.clock.start(&self.gpu)
    }

    fn operation_times(&self) -> Result<Vec<OperationTime>> {
        self.clock.stop()
    }

    fn add_rms_norm(&self, op: &AddRmsNorm<'_>) -> Result<()> {
        let at = AddRmsNormAt {
            residual: DeviceSlice::of(op.residual)?,
            delta: op.delta.map(DeviceSlice::of).transpose()?,
            delta_norm: op.delta_norm.map(DeviceSlice::of).transpose()?,
            weight: DeviceSlice::of(op.weight)?,
            normed: DeviceSlice::of(op.normed)?,
        };
        let (rows, hidden) = op.residual.dims2()?;
        self.gpu.add_rms_norm([rows, hidden], at, op.eps)
    }

    fn norm_heads(&self, op: &NormHeads<'_>) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim } = op.shape;
        let (gpu, qkv, (rows, width)) = (&self.gpu, DeviceSlice::of(op.qkv)?, op.qkv.dims2()?);
        let (q, k) = (DeviceSlice::of(op.q)?, DeviceSlice::of(op.k)?);
        gpu.norm_heads(qkv, q, [rows, width], 0, [heads, head_dim], op.eps)?;
        gpu.norm_heads(qkv, k, [rows, width], heads * head_dim, [kv_heads, head_dim], op.eps)
    }

    fn attention(&self, op: &Attention<'_>) -> Result<()> {
        let (gpu, step, layout) = (&self.gpu, op.step, op.settings.layout);
        let on_gpu = gpu.step();
        gpu.attention(&PagedQueries {
            shape: layout.shape(),
            block_size: layout.block_size(),
            q: DeviceSlice::of(op.qkv)?,
            q_stride: layout.shape().qkv_width(),
            k_cache: DeviceSlice::of(&op.cache.keys)?,
            v_cache: DeviceSlice::of(&op.cache.values)?,
            out: DeviceSlice::of(op.out)?,
            softmax_lse: on_gpu.softmax_lse(),
            cumulative_queries: on_gpu.cumulative_queries()?,
            cumulative_keys: on_gpu.cumulative_keys()?,
            block_table: on_gpu.block_table()?,
            max_blocks: step.max_blocks(),
            sequences: step.sequences(),
            decodes: step.decodes(),
            tokens: step.tokens(),
            longest_queries: step.longest_queries(),
            longest_decode_keys: step.longest_decode_keys(),
            longest_prefill_keys: step.longest_prefill_keys(),
            scale: op.settings.scale,
            softcap: op.settings.softcap,
            window: op.window,
            split_kv: on_gpu.split_kv(step)?,
            row_by_row: gpu.is_deterministic(),
        })
    }

    fn gated(&self, op: &Gated<'_>) -> Result<()> {
        let (gate_up, activated, (rows, width)) =
            (DeviceSlice::of(op.gate_up)?, DeviceSlice::of(op.activated)?, op.activated.dims2()?);
        self.gpu.gated(gate_up, activated, [rows, width], op.activation)
    }

    fn gather_rows(&self, op: &GatherRows<'_>) -> Result<()> {
        let row_bytes = op.to.dim(1)? * op.from.dtype().size_in_bytes();
        let (to, from) = (DeviceSlice::of(op.to)?, DeviceSlice::of(op.from)?);
        self.gpu.gather_rows(from, self.gpu.step().logit_rows()?, to, op.step.logit_rows().len(), row_bytes)
    }

    fn softcap(&self, numbers: &Tensor, cap: f32) -> Result<()> {
        self.gpu.softcap(DeviceSlice::of(numbers)?, numbers.elem_count(), cap)
    }

    fn mask_logits(&self, op: &MaskLogits<'_>) -> Result<()> {
        let masks = self.gpu.step().upload_masks(op.masks)?;
        let (rows, width) = op.logits.dims2()?;
        self.gpu.mask_logits(DeviceSlice::of(op.logits)?, &masks, op.masks.rows().len(), [rows, width])
    }

    fn sample(&self, op: &Sample<'_>) -> Result<()> {
        let (gpu, on_gpu, step) = (&self.gpu, self.gpu.step(), op.step);
        let (logits, shape) = (DeviceSlice::of(op.logits)?, [step.choices().len(), op.logits.dim(1)?]);
        let choose = || gpu.sample(logits, on_gpu.choices()?.bytes(), on_gpu.tokens(), shape);
        if step.adjustments().rows().is_empty() && step.logprobs().is_empty() {
            choose()?;
        } else {
            on_gpu.lists().with(step, shape[1], |lists| {
                gpu.summarise_rows(logits, shape, step, lists)?;
                gpu.adjust_logits(logits, shape, step, lists)?;
                choose()?;
                gpu.chosen_logits(logits, on_gpu.tokens(), shape, step, lists)
            })?;
        }
        // Only the tokens go to the host.
        on_gpu.fetch_tokens(op.turn, shape[0])
    }

    fn read_tokens(&self, turn: Turn, tokens: &mut [u32]) -> Result<()> {
        self.gpu.step().read_tokens(turn, tokens)
    }

    fn read_logprobs(&self, _turn: Turn, tokens: &[u32], logprobs: &mut Vec<(usize, TokenLogprobs)>) -> Result<()> {
        self.gpu.step().lists().read_logprobs(tokens, logprobs)
    }

    fn runs_ahead(&self) -> bool {
        true
    }
}

/// Cosines and sines by position on a GPU.
struct GpuRope {
    gpu: Arc<Gpu>,
    /// `[positions, half]`, single precision.
    cos: Tensor,
    /// `[positions, half]`, single precision.
    sin: Tensor,
    half: usize,
}

impl RotaryEmbedding for GpuRope {
    fn rope_and_cache(&self, op: &RopeAndCache<'_>) -> Result<()> {
        let step = self.gpu.step();
        let at = RopeAt {
            qkv: DeviceSlice::of(op.qkv)?,
            cos: DeviceSlice::of(&self.cos)?,
            sin: DeviceSlice::of(&self.sin)?,
            positions: step.positions()?,
            slots: step.slots()?,
            k_cache: DeviceSlice::of(&op.cache.keys)?,
            v_cache: DeviceSlice::of(&op.cache.values)?,
        };
        self.gpu.rope_and_cache(op.step.tokens(), op.layout.shape(), self.half, at)
    }
}

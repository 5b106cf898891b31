//! The operations of a forward pass on one GPU: tensors become addresses, and kernels are queued.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device as CandleDevice, Result, Tensor};

use super::address::Address;
use super::attention::PagedQueries;
use super::gpu::Gpu;
use super::graph::Graphs;
use super::launch::{AddRmsNormAt, RopeAt};
use super::linear::Filling;
use flashjob_cpu::{AttentionShape, Pool, RopeTable};
use flashjob_engine::{
    AddRmsNorm, Attention, Device, Error, ForwardBatch, Gated, GatherRows, MatrixBuilder, NormHeads, RopeAndCache,
    RotaryEmbedding,
};
use flashjob_model::Dtype;

/// A GPU, and the threads of its host.
pub struct GpuDevice {
    /// Recorded steps, which its rank alone replays; given back before what they read and launch.
    graphs: Mutex<Graphs>,
    gpu: Arc<Gpu>,
    host: Arc<Pool>,
    candle: CandleDevice,
}

impl GpuDevice {
    /// `gpu`, which has room for steps; what must be done on the host is done by `host`.
    pub fn new(gpu: Gpu, host: Arc<Pool>) -> Self {
        Self { candle: gpu.device(), gpu: Arc::new(gpu), host, graphs: Mutex::default() }
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
    fn matrix(&self, _dtype: Dtype, shape: [usize; 2]) -> Result<Box<dyn MatrixBuilder>> {
        Ok(Box::new(Filling::new(&self.gpu, shape)?))
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
        self.gpu.step().upload(step).map_err(Error::compute("upload a step"))?;
        match step.replay() {
            Some(size) => {
                let mut graphs = self.graphs.lock().unwrap_or_else(PoisonError::into_inner);
                graphs.compute(&self.gpu, size, queue)
            }
            None => queue(),
        }
    }

    fn wait(&self) -> Result<()> {
        self.candle.synchronize()
    }

    fn add_rms_norm(&self, op: &AddRmsNorm<'_>) -> Result<()> {
        let address = |tensor: Option<&Tensor>| tensor.map_or(Ok(Address::NULL), Address::of);
        let at = AddRmsNormAt {
            residual: Address::of(op.residual)?,
            delta: address(op.delta)?,
            delta_norm: address(op.delta_norm)?,
            weight: Address::of(op.weight)?,
            normed: Address::of(op.normed)?,
        };
        let (rows, hidden) = op.residual.dims2()?;
        self.gpu.add_rms_norm([rows, hidden], at, op.eps)
    }

    fn norm_heads(&self, op: &NormHeads<'_>) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim } = op.shape;
        let (gpu, qkv, (rows, width)) = (&self.gpu, Address::of(op.qkv)?, op.qkv.dims2()?);
        let (q, k) = (Address::of(op.q)?, Address::of(op.k)?);
        gpu.norm_heads(qkv, q, [rows, width], 0, [heads, head_dim], op.eps)?;
        gpu.norm_heads(qkv, k, [rows, width], heads * head_dim, [kv_heads, head_dim], op.eps)
    }

    fn attention(&self, op: &Attention<'_>) -> Result<()> {
        let (gpu, step, layout) = (&self.gpu, op.step, op.settings.layout);
        let on_gpu = gpu.step();
        gpu.attention(&PagedQueries {
            shape: layout.shape(),
            block_size: layout.block_size(),
            q: Address::of(op.qkv)?,
            q_stride: layout.shape().qkv_width(),
            k_cache: Address::of(&op.cache.keys)?,
            v_cache: Address::of(&op.cache.values)?,
            out: Address::of(op.out)?,
            softmax_lse: on_gpu.softmax_lse(),
            cumulative_queries: on_gpu.cumulative_queries(),
            cumulative_keys: on_gpu.cumulative_keys(),
            block_table: on_gpu.block_table(),
            max_blocks: step.max_blocks(),
            sequences: step.sequences(),
            tokens: step.tokens(),
            longest_queries: step.longest_queries(),
            longest_keys: step.longest_keys(),
            scale: op.settings.scale,
            softcap: op.settings.softcap,
            window: op.window,
            // Decided from the size of the step alone: a recorded graph must not depend on lengths.
            split_kv: on_gpu.split_kv(step),
        })
    }

    fn gated(&self, op: &Gated<'_>) -> Result<()> {
        let (gate_up, activated, (rows, width)) =
            (Address::of(op.gate_up)?, Address::of(op.activated)?, op.activated.dims2()?);
        self.gpu.gated(gate_up, activated, [rows, width], op.activation)
    }

    fn gather_rows(&self, op: &GatherRows<'_>) -> Result<()> {
        let row_bytes = op.to.dim(1)? * op.from.dtype().size_in_bytes();
        let (to, from) = (Address::of(op.to)?, Address::of(op.from)?);
        self.gpu.gather_rows(from, self.gpu.step().logit_rows(), to, op.step.logit_rows().len(), row_bytes)
    }

    fn softcap(&self, numbers: &Tensor, cap: f32) -> Result<()> {
        self.gpu.softcap(Address::of(numbers)?, numbers.elem_count(), cap)
    }

    fn argmax(&self, logits: &Tensor, best: &mut [u32]) -> Result<()> {
        let step = self.gpu.step();
        self.gpu.argmax(Address::of(logits)?, step.best(), [best.len(), logits.dim(1)?])?;
        // Only the tokens come back.
        step.download_best(best)
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
            qkv: Address::of(op.qkv)?,
            cos: Address::of(&self.cos)?,
            sin: Address::of(&self.sin)?,
            positions: step.positions(),
            slots: step.slots(),
            k_cache: Address::of(&op.cache.keys)?,
            v_cache: Address::of(&op.cache.values)?,
        };
        self.gpu.rope_and_cache(op.step.tokens(), op.layout.shape(), self.half, at)
    }
}

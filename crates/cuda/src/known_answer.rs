//! Attention whose answer is known, once for each GPU before weights are loaded.
//!
//! A kernel that this GPU or its driver does not run as it was built gives fluent nonsense otherwise, and no error. Steps of each
//! kind, prompts and decoding sequences, short and long, take the way of every step, and a processor computes the same in double
//! precision. What weights are is not known here.

use candle_core::{DType, Device as CandleDevice, Result, Tensor, bail};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::device::GpuDevice;
use flashjob_cpu::{AttentionShape, CacheLayout};
use flashjob_engine::{
    Attention, AttentionSettings, Device, EngineLimits, Error, ForwardBatch, LayerCache, LogitsRows,
};
use flashjob_model::Dtype;

/// Largest error in units of the format's rounding, of means of numbers below 1: weights, their products with values and the result
/// are rounded. A wrong answer is off by a hundred units.
const TOLERATED_UNITS: f64 = 6.0;

/// A kind of step.
struct Case {
    name: &'static str,
    /// Queries and keys of each sequence; the queries are the last of the keys.
    sequences: Vec<[usize; 2]>,
}

/// Kinds of steps that attention treats differently, as far as `limits` allow for them.
fn cases(limits: &EngineLimits) -> Vec<Case> {
    let within = |sequences: &[[usize; 2]]| {
        let mut tokens = 0;
        let cut = |[queries, keys]: [usize; 2]| {
            let keys = keys.min(limits.max_model_len);
            [queries.min(keys), keys]
        };
        let fits = |[queries, _]: &[usize; 2]| {
            tokens += queries;
            tokens <= limits.max_num_batched_tokens
        };
        sequences.iter().map(|&lengths| cut(lengths)).take(limits.max_num_seqs).take_while(fits).collect()
    };
    vec![
        Case { name: "prompts", sequences: within(&[[5, 5], [7, 50], [40, 40]]) },
        Case { name: "decoding sequences", sequences: within(&[[1, 1], [1, 33], [1, 70]]) },
        Case { name: "decoding sequences and prompts", sequences: within(&[[1, 33], [1, 70], [20, 20]]) },
        // Long enough for its keys to be attended to in parts.
        Case { name: "a long decoding sequence", sequences: within(&[[1, 600]]) },
    ]
}

/// Computes attention on `device`, the one with this number, and compares.
///
/// # Errors
/// [`Error::Compute`] for an answer that is wrong, and the driver's own.
pub fn check(
    device: &GpuDevice,
    ordinal: usize,
    limits: &EngineLimits,
    shape: AttentionShape,
) -> std::result::Result<(), Error> {
    compare(device, ordinal, limits, shape)
        .map_err(Error::compute("trust a GPU's attention, which is tried on numbers whose answer is known"))
}

fn compare(device: &GpuDevice, ordinal: usize, limits: &EngineLimits, shape: AttentionShape) -> Result<()> {
    let tolerance = TOLERATED_UNITS * rounding(device.gpu().dtype());
    for Case { name, sequences } in cases(limits).into_iter().filter(|case| !case.sequences.is_empty()) {
        let problem = Problem::new(&sequences, shape, limits.block_size, device.gpu().dtype())?;
        let computed = problem.on_gpu(device, limits)?;
        let expected = problem.answer();
        let off = expected.iter().zip(&computed).map(|(expected, &computed)| (expected - f64::from(computed)).abs());
        let largest = off.fold(0.0, |largest: f64, off| if off.is_nan() { f64::INFINITY } else { largest.max(off) });
        if largest > tolerance {
            bail!(
                "heads of {} in {} on GPU {ordinal} ({}): {name} are off by {largest:.3}, where rounding makes {tolerance:.3}; \
                 this build does not fit the GPU or its driver, or the GPU is broken",
                shape.head_dim,
                device.gpu().dtype().name(),
                device.gpu().name()
            );
        }
    }
    Ok(())
}

/// Half of the distance between 1 and the next number.
fn rounding(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bf16 => (-8f64).exp2(),
        Dtype::F16 => (-11f64).exp2(),
        Dtype::F32 => (-24f64).exp2(),
    }
}

/// Queries, keys and values of a step.
struct Problem<'a> {
    sequences: &'a [[usize; 2]],
    layout: CacheLayout,
    /// Blocks of each sequence.
    blocks: Vec<Vec<u32>>,
    /// `[tokens, (heads + 2 · kv_heads) · head_dim]`, of which only queries are read; in the format of activations, on the host.
    qkv: Tensor,
    /// `[blocks, block_size, kv_heads, head_dim]`.
    keys: Tensor,
    /// `[blocks, block_size, kv_heads, head_dim]`.
    values: Tensor,
}

impl<'a> Problem<'a> {
    /// Numbers between −1 and 1, the same in every job.
    fn new(sequences: &'a [[usize; 2]], shape: AttentionShape, block_size: usize, dtype: Dtype) -> Result<Self> {
        let layout = CacheLayout::by_token(shape, block_size);
        let counts = sequences.iter().map(|[_, keys]| keys.div_ceil(block_size) as u32);
        let num_blocks: u32 = counts.clone().sum();
        // The last blocks first: neighbours in a sequence are none in memory.
        let mut end = num_blocks;
        let blocks = counts.map(|count| {
            end -= count;
            (end..end + count).rev().collect()
        });
        let blocks = blocks.collect();
        let tokens: usize = sequences.iter().map(|[queries, _]| queries).sum();
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut drawn = |count: usize| {
            let numbers: Vec<f32> = (0..count).map(|_| random.random_range(-1.0..1.0)).collect();
            Tensor::from_vec(numbers, count, &CandleDevice::Cpu)?.to_dtype(dtype.into())
        };
        let of_cache = num_blocks as usize * layout.block_keys();
        let (qkv, keys, values) = (drawn(tokens * shape.qkv_width())?, drawn(of_cache)?, drawn(of_cache)?);
        Ok(Self { sequences, layout, blocks, qkv, keys, values })
    }

    fn scale(&self) -> f64 {
        1.0 / (self.layout.shape().head_dim as f64).sqrt()
    }

    /// The GPU's answer: `[tokens, heads · head_dim]`.
    fn on_gpu(&self, device: &GpuDevice, limits: &EngineLimits) -> Result<Vec<f32>> {
        let gpu = device.candle();
        let mut step = ForwardBatch::with_capacity(limits);
        step.begin(self.sequences.iter().map(|[_, keys]| *keys).max().unwrap_or(0));
        for (&[queries, keys], blocks) in self.sequences.iter().zip(&self.blocks) {
            step.push(&vec![0; queries], keys - queries, blocks.iter().copied(), LogitsRows::Last);
        }
        let cache = LayerCache { keys: self.keys.to_device(gpu)?, values: self.values.to_device(gpu)? };
        let settings = AttentionSettings { layout: self.layout, scale: self.scale() as f32, softcap: None };
        let out = device.zeros(step.tokens() * self.layout.shape().out_width(), device.gpu().dtype())?;
        let qkv = self.qkv.to_device(gpu)?;
        let op = Attention { qkv: &qkv, settings: &settings, window: None, step: &step, cache: &cache, out: &out };
        device.gpu().step().upload(&step)?;
        device.attention(&op)?;
        // Widened on the host: a cast would be a kernel of candle's.
        out.to_device(&CandleDevice::Cpu)?.to_dtype(DType::F32)?.to_vec1()
    }

    /// The answer in double precision: `[tokens, heads · head_dim]`.
    fn answer(&self) -> Vec<f64> {
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_vec1::<f32>();
        // Numbers of the host: nothing can fail.
        let [qkv, keys, values] = [&self.qkv, &self.keys, &self.values].map(|tensor| wide(tensor).unwrap_or_default());
        let AttentionShape { heads, kv_heads, head_dim } = self.layout.shape();
        let block_size = self.layout.block_size();
        let mut answer = Vec::new();
        let mut rows = qkv.chunks_exact(self.layout.shape().qkv_width());
        for (&[queries, keys_of_sequence], blocks) in self.sequences.iter().zip(&self.blocks) {
            let place = |key: usize, kv_head: usize| {
                let token = blocks[key / block_size] as usize * block_size + key % block_size;
                (token * kv_heads + kv_head) * head_dim
            };
            for (query, row) in rows.by_ref().take(queries).enumerate() {
                let visible = keys_of_sequence - queries + query + 1;
                for (head, q) in row.chunks_exact(head_dim).take(heads).enumerate() {
                    let kv_head = head / (heads / kv_heads);
                    let scores: Vec<f64> = (0..visible)
                        .map(|key| self.scale() * dot(q, &keys[place(key, kv_head)..][..head_dim]))
                        .collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    answer.extend((0..head_dim).map(|entry| {
                        let value = |key| f64::from(values[place(key, kv_head) + entry]);
                        weights.iter().enumerate().map(|(key, weight)| weight * value(key)).sum::<f64>() / sum
                    }));
                }
            }
        }
        answer
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

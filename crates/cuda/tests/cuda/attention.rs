//! Attention of a step that mixes sequences that decode with prompts: bit for bit what either kind gets in a step of its own.

use candle_core::{Device as CandleDevice, Tensor};
use flashjob_cpu::{AttentionShape, Isa};
use flashjob_cuda::Cuda;
use flashjob_engine::{
    Attention, AttentionSettings, CacheOrder, CpuNodes, EngineLimits, Error, ForwardBatch, LayerCache, LogitsRows,
    NodeDevices, Platform as _,
};
use flashjob_model::Dtype;
use half::f16;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const LIMITS: EngineLimits = EngineLimits {
    max_num_seqs: 16,
    max_num_batched_tokens: 256,
    max_model_len: 1024,
    block_size: 32,
    num_blocks: 64,
    num_spare_blocks: 1,
    vocab_size: 10,
};

/// Keys, and how many of them are new.
const DECODES: [[usize; 2]; 3] = [[1, 1], [70, 1], [600, 1]];

/// A prompt, a chunk of one that goes on, and a prompt of one token.
const PREFILLS: [[usize; 2]; 3] = [[40, 40], [97, 33], [1, 1]];

/// A layer of one rank with a cache full of numbers, and queries of all sequences.
struct Layer {
    devices: Box<dyn NodeDevices>,
    settings: AttentionSettings,
    cache: LayerCache,
    /// By sequence, `[new tokens, (heads + 2 · kv_heads) · head_dim]`.
    queries: Vec<Vec<f16>>,
}

impl Layer {
    fn new(shape: AttentionShape) -> Self {
        let cpus = CpuNodes { threads: 1, isa: Isa::Portable, nodes: 1 };
        let devices = Cuda.open(1, cpus, Dtype::F16, false).unwrap().ready(&LIMITS, shape, 1).unwrap().remove(0);
        let layout = CacheOrder::Tokens.layout(shape, LIMITS.block_size);
        let mut generator = ChaCha8Rng::seed_from_u64(20261129);
        let mut numbers = |count: usize| -> Vec<f16> {
            (0..count).map(|_| f16::from_f32(generator.random_range(-2.0..2.0))).collect()
        };
        let candle = devices.ranks()[0].candle().clone();
        let mut uploaded = |count: usize| {
            Tensor::from_vec(numbers(count), count, &CandleDevice::Cpu).unwrap().to_device(&candle).unwrap()
        };
        let blocks = LIMITS.num_allocated_blocks();
        let cache = LayerCache {
            keys: uploaded(blocks * layout.block_keys()),
            values: uploaded(blocks * layout.block_values()),
        };
        let queries = sequences().map(|[_, new]| numbers(new * shape.qkv_width())).collect();
        Self { devices, settings: AttentionSettings { layout, scale: 0.3, softcap: None }, cache, queries }
    }

    /// What comes of a step of the sequences with these numbers, by sequence.
    fn attend(&self, chosen: std::ops::Range<usize>, window: Option<usize>) -> Vec<Vec<u16>> {
        let shape = self.settings.layout.shape();
        let mut step = ForwardBatch::with_capacity(&LIMITS);
        let of_step = || sequences().enumerate().skip(chosen.start).take(chosen.len());
        step.begin(of_step().map(|(_, [keys, _])| keys).max().unwrap());
        for (index, [keys, new]) in of_step() {
            // The last ones first, so that no two tables are alike.
            let first = sequences().take(index).map(|[keys, _]| keys.div_ceil(LIMITS.block_size)).sum::<usize>();
            let blocks = first as u32..(first + keys.div_ceil(LIMITS.block_size)) as u32;
            step.push(&vec![0; new], keys - new, blocks.rev(), LogitsRows::None);
        }
        let device = self.devices.ranks()[0].as_ref();
        let rows = self.queries[chosen.clone()].concat();
        let qkv = Tensor::from_vec(rows, (step.tokens(), shape.qkv_width()), &CandleDevice::Cpu).unwrap();
        let qkv = qkv.to_device(device.candle()).unwrap();
        let out = device.zeros(step.tokens() * shape.out_width(), Dtype::F16).unwrap();
        let out = out.reshape((step.tokens(), shape.out_width())).unwrap();
        let (settings, cache) = (&self.settings, &self.cache);
        let op = Attention { qkv: &qkv, settings, window, step: &step, cache, out: &out };
        device.compute(&step, &mut || device.attention(&op).map_err(Error::compute("attend"))).unwrap();
        device.wait().unwrap();
        let bits: Vec<u16> =
            out.flatten_all().unwrap().to_vec1::<f16>().unwrap().into_iter().map(f16::to_bits).collect();
        let mut rest = &bits[..];
        of_step().map(|(_, [_, new])| rest.split_off(..new * shape.out_width()).unwrap().to_vec()).collect()
    }
}

fn sequences() -> impl Iterator<Item = [usize; 2]> {
    DECODES.into_iter().chain(PREFILLS)
}

#[test]
fn a_mixed_step_gives_what_separate_steps_give() {
    let all = DECODES.len() + PREFILLS.len();
    for (heads, kv_heads) in [(8, 2), (2, 2)] {
        let layer = Layer::new(AttentionShape { heads, kv_heads, head_dim: 16 });
        // None, one that hides nothing, and one that hides keys.
        for window in [None, Some(600), Some(50)] {
            let mixed = layer.attend(0..all, window);
            let decodes = layer.attend(0..DECODES.len(), window);
            let prefills = layer.attend(DECODES.len()..all, window);
            assert!(mixed.iter().flatten().any(|&bits| f16::from_bits(bits) != f16::ZERO));
            assert!(mixed[..DECODES.len()] == decodes, "{heads} heads, window {window:?}: sequences that decode");
            assert!(mixed[DECODES.len()..] == prefills, "{heads} heads, window {window:?}: prompts");
        }
        let (unlimited, hiding) = (layer.attend(0..all, None), layer.attend(0..all, Some(600)));
        assert!(unlimited == hiding, "{heads} heads: a window that hides nothing changes numbers");
    }
}

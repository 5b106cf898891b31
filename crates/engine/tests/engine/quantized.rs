//! Quantised weights that stay in their blocks: to the bit the model whose weights are dequantised to single precision.

use std::io::Cursor;
use std::num::NonZeroUsize;

use candle_core::quantized::gguf_file::{Content, Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use flashjob_config::{DtypeChoice, EngineConfig, Quantization};
use flashjob_engine::Engine;
use flashjob_event::Events;
use tokio_util::sync::CancellationToken;

use super::{config, request, serve};
use crate::model::altered::Altered;
use crate::model::golden::prompts;

const HIDDEN: usize = 256;
const INNER: usize = 512;
const VOCABULARY: usize = 288;

/// The GGUF fixture with a layer wide enough for blocks of 256, and seeded weights: all in `format`, but for values and the `down`
/// projection.
fn model(format: GgmlDType, other: GgmlDType) -> Altered {
    let model = Altered::of("llama-gguf");
    let file = model.read("model.gguf");
    let mut metadata = Content::read(&mut Cursor::new(&file)).unwrap().metadata;
    for (key, number) in [
        ("llama.block_count", 1),
        ("llama.embedding_length", HIDDEN),
        ("llama.feed_forward_length", INNER),
        ("llama.rope.dimension_count", HIDDEN / 4),
    ] {
        metadata.insert(key.to_owned(), Value::U32(number as u32));
    }
    let seeded = |[rows, columns]: [usize; 2], format| {
        let number = |index: usize| ((index * 7919 % 2003) as f32 / 1001.5 - 1.0) / (columns as f32).sqrt();
        let numbers: Vec<f32> = (0..rows * columns).map(number).collect();
        QTensor::quantize(&Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap(), format).unwrap()
    };
    let ones = |length: usize| {
        QTensor::quantize(&Tensor::from_vec(vec![1f32; length], length, &Device::Cpu).unwrap(), GgmlDType::F32).unwrap()
    };
    let tensors = [
        ("token_embd.weight", seeded([VOCABULARY, HIDDEN], format)),
        ("blk.0.attn_q.weight", seeded([HIDDEN, HIDDEN], format)),
        ("blk.0.attn_k.weight", seeded([HIDDEN / 2, HIDDEN], format)),
        ("blk.0.attn_v.weight", seeded([HIDDEN / 2, HIDDEN], other)),
        ("blk.0.attn_output.weight", seeded([HIDDEN, HIDDEN], format)),
        ("blk.0.ffn_gate.weight", seeded([INNER, HIDDEN], format)),
        ("blk.0.ffn_up.weight", seeded([INNER, HIDDEN], format)),
        ("blk.0.ffn_down.weight", seeded([HIDDEN, INNER], other)),
        ("blk.0.attn_norm.weight", ones(HIDDEN)),
        ("blk.0.ffn_norm.weight", ones(HIDDEN)),
        ("output_norm.weight", ones(HIDDEN)),
        ("output.weight", seeded([VOCABULARY, HIDDEN], format)),
    ];
    let mut written = Cursor::new(Vec::new());
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    write(&mut written, &metadata, &tensors).unwrap();
    model.write("model.gguf", written.into_inner());
    model
}

fn load(model: &Altered, config: &EngineConfig) -> Engine {
    Engine::load(&model.open().unwrap(), config, &Events::default(), &CancellationToken::new()).unwrap()
}

fn with(quantization: Quantization, ranks: usize) -> EngineConfig {
    EngineConfig { quantization, tensor_parallel_size: NonZeroUsize::new(ranks), ..config() }
}

fn logits(engine: &mut Engine, tokens: &[u32]) -> Vec<Vec<u32>> {
    let rows = engine.logits(tokens, &CancellationToken::new()).unwrap();
    rows.iter().map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect()
}

#[test]
fn logits_are_to_the_bit_those_of_dequantised_weights() {
    use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let tokens = &prompts("llama-gguf")[2].tokens;
    for (format, other, name) in [
        (Q4_0, Q4_1, "q4_0, q4_1"),
        (Q5_0, Q5_1, "q5_0, q5_1"),
        (Q8_0, Q8_0, "q8_0"),
        (Q2K, Q3K, "q2_k, q3_k"),
        (Q3K, Q4K, "q3_k, q4_k"),
        (Q4K, Q6K, "q4_k, q6_k"),
        (Q5K, Q8_0, "q5_k, q8_0"),
        (Q6K, Q2K, "q6_k, q2_k"),
        (Q4K, GgmlDType::F16, "q4_k, float32"),
    ] {
        let model = model(format, other);
        for ranks in [1, 2] {
            let mut kept = load(&model, &with(Quantization::Auto, ranks));
            let mut dequantised = load(&model, &with(Quantization::None, ranks));
            assert_eq!((kept.report().dtype, kept.report().weights_dtype.as_str()), ("float32", name));
            assert_eq!(dequantised.report().weights_dtype, "float32");
            assert_eq!(logits(&mut kept, tokens), logits(&mut dequantised, tokens), "{name} on {ranks} ranks");
            let requests = || vec![request(0, tokens, 12), request(1, &tokens[..3], 12)];
            let texts = [&mut kept, &mut dequantised].map(|engine| {
                let (outputs, _) = serve(engine, requests()).unwrap();
                outputs.into_iter().map(|output| output.tokens).collect::<Vec<_>>()
            });
            assert_eq!(texts[0], texts[1], "{name} on {ranks} ranks");
        }
    }
}

#[test]
fn weights_take_little_more_memory_than_their_file() {
    for format in [GgmlDType::Q4_0, GgmlDType::Q4K, GgmlDType::Q6K, GgmlDType::Q8_0] {
        let model = model(format, format);
        let kept = load(&model, &with(Quantization::Auto, 1)).report().cost.weight_bytes;
        let stored = model.open().unwrap().weights.total_bytes();
        assert!(kept as f64 <= 1.15 * stored as f64, "{format:?}: {kept} bytes of {stored}");
    }
}

/// Half of a block is on each rank: weights that cannot stay in their blocks are dequantised, those beside them are not.
#[test]
fn ranks_that_would_divide_a_block_dequantise() {
    let model = model(GgmlDType::Q4K, GgmlDType::Q6K);
    let tokens = &prompts("llama-gguf")[1].tokens;
    let [kept, dequantised] = [Quantization::Auto, Quantization::None].map(|format| load(&model, &with(format, 2)));
    // The attention's output projection has 128 columns on each rank.
    let [kept_bytes, plain_bytes] = [&kept, &dequantised].map(|engine| engine.report().cost.weight_bytes);
    assert!(kept_bytes > plain_bytes / 8 + (HIDDEN * HIDDEN * 4) as u64 && kept_bytes < plain_bytes / 2);
    let [mut kept, mut dequantised] = [kept, dequantised];
    assert_eq!(logits(&mut kept, tokens), logits(&mut dequantised, tokens));
}

#[test]
fn numbers_that_are_none_are_found_in_blocks() {
    let model = model(GgmlDType::Q8_0, GgmlDType::Q8_0);
    let mut file = model.read("model.gguf");
    // A scale of the last tensor: its first block is somewhere in the last bytes, whose every 34th begins one.
    let last_block = file.len() - 34;
    file[last_block..last_block + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    model.write("model.gguf", file);
    let config = EngineConfig { dtype: DtypeChoice::Bfloat16, validate_weights: true, ..with(Quantization::Auto, 1) };
    let refusal = Engine::load(&model.open().unwrap(), &config, &Events::default(), &CancellationToken::new());
    let refusal = refusal.err().unwrap().to_string();
    assert!(refusal.contains("NaN") && refusal.contains("output.weight"), "{refusal}");
}

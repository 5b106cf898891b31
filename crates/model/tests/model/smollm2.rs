//! Real weights and a real vocabulary: SmolLM2-135M-Instruct as a quantised GGUF file.

use std::sync::LazyLock;

use flashjob_model::Dtype;
use flashjob_test_models::smollm2::file;
use serde::Deserialize;

use super::altered::Checkpoint;
use super::{golden, plain_decoder};

/// Output of llama.cpp and transformers, recorded by `scripts/golden_smollm2.py`.
#[derive(Deserialize)]
struct Expected {
    logits: Logits,
    tokens: Vec<(String, Vec<u32>)>,
}

#[derive(Deserialize)]
struct Logits {
    prompt: Vec<u32>,
    smallest: f32,
    likeliest: Vec<(usize, f32)>,
}

static EXPECTED: LazyLock<Expected> = LazyLock::new(|| {
    let json = std::fs::read(golden::directory("smollm2.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
});

fn model() -> Option<&'static Checkpoint> {
    static MODEL: LazyLock<Option<Checkpoint>> = LazyLock::new(|| {
        let path = file()?;
        Some(Checkpoint::open(&path, &path).unwrap())
    });
    MODEL.as_ref()
}

#[test]
fn real_texts_give_the_tokens_of_llama_cpp() {
    let Some(model) = model() else { return };
    assert_eq!(EXPECTED.tokens.len(), 13);
    for (text, ids) in &EXPECTED.tokens {
        assert_eq!(&model.texts.tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        let special = text.contains("<|");
        assert!(special || &model.texts.tokenizer.decode(ids).unwrap() == text, "{text:?}");
    }
}

#[test]
fn real_weights_give_the_logits_of_transformers() {
    let Some(model) = model() else { return };
    assert_eq!((model.parameters, model.dtype, &model.texts.eos_tokens[..]), (134_515_008, Dtype::F16, &[0, 2, 4][..]));
    let computed = plain_decoder::logits(model, &EXPECTED.logits.prompt).pop().unwrap();
    let range = EXPECTED.logits.likeliest[0].1 - EXPECTED.logits.smallest;
    for &(token, reference) in &EXPECTED.logits.likeliest {
        let error = (computed[token] - reference).abs() / range;
        assert!(error < 1e-5, "token {token}: {error}");
    }
    let likeliest = (0..computed.len()).max_by(|&a, &b| computed[a].total_cmp(&computed[b])).unwrap();
    assert_eq!(model.texts.tokenizer.decode(&[likeliest as u32]).unwrap(), " Paris");
}

//! Reads the fixtures of `tests/golden`; its README has the format.

use std::path::PathBuf;

use flashjob_test_support::project;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// Models that transformers has computed, by directory.
pub const MODELS: [&str; 11] = [
    "llama-gqa",
    "llama-mqa-tied",
    "llama-sharded",
    "llama-gguf",
    "mistral-window",
    "qwen2-bias-window",
    "qwen3-qk-norm",
    "phi3-short",
    "phi3-long-window",
    "gemma2-softcaps",
    "gemma3-two-ropes",
];

/// The same of models that take images, too: directories as transformers saves them.
pub const MODELS_WITH_IMAGES: [&str; 2] = ["gemma3-images", "mistral3-images"];

/// A prompt and what transformers makes of it.
pub struct Prompt {
    /// Tokens of the text.
    pub tokens: Vec<u32>,
    /// Position in the prompt, and the logits after it.
    pub logits: Vec<(usize, Vec<f32>)>,
    /// The greedy continuation.
    pub greedy: Vec<u32>,
}

/// The directory of a fixture.
pub fn directory(name: &str) -> PathBuf {
    project().join("tests/golden").join(name)
}

/// The prompts of a fixture.
pub fn prompts(name: &str) -> Vec<Prompt> {
    let bytes = std::fs::read(directory(name).join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let count = tensors.names().iter().filter(|name| name.starts_with("prompt.")).count();
    let read = |kind: &str, index: usize| tensors.tensor(&format!("{kind}.{index}")).unwrap();
    (0..count)
        .map(|index| {
            let logits = read("logits", index);
            let vocab_size = logits.shape()[1];
            let rows = words(&logits).map(f32::from_bits).collect::<Vec<_>>();
            let rows = rows.chunks(vocab_size).map(<[f32]>::to_vec);
            Prompt {
                tokens: words(&read("prompt", index)).collect(),
                logits: words(&read("positions", index)).map(|position| position as usize).zip(rows).collect(),
                greedy: words(&read("greedy", index)).collect(),
            }
        })
        .collect()
}

/// The largest difference of two rows of logits, as a share of the reference's range.
pub fn relative_error(reference: &[f32], computed: &[f32]) -> f32 {
    assert_eq!(reference.len(), computed.len());
    let range = reference.iter().copied().fold(f32::MIN, f32::max) - reference.iter().copied().fold(f32::MAX, f32::min);
    reference.iter().zip(computed).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / range
}

/// Four-byte numbers as bits.
fn words(tensor: &TensorView<'_>) -> impl Iterator<Item = u32> + use<> {
    let bytes = tensor.data().to_vec();
    (0..bytes.len() / 4).map(move |word| u32::from_le_bytes(bytes[4 * word..][..4].try_into().unwrap()))
}

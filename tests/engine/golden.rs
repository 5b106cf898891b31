//! The engine against Hugging Face transformers, on fixtures that `tests/golden/README.md` describes.

use flashjob::config::{DtypeChoice, EngineConfig};
use flashjob::engine::Engine;
use tokio_util::sync::CancellationToken;

use super::{config, load, request, serve};
use crate::model::golden::{MODELS, Prompt, prompts, relative_error};

fn largest_error(engine: &mut Engine, prompts: &[Prompt]) -> f32 {
    let mut largest: f32 = 0.0;
    for prompt in prompts {
        let computed = engine.logits(&prompt.tokens, &CancellationToken::new()).unwrap();
        assert_eq!(computed.len(), prompt.tokens.len());
        for (position, reference) in &prompt.logits {
            largest = largest.max(relative_error(reference, &computed[*position]));
        }
    }
    largest
}

#[test]
fn logits_are_those_of_transformers() {
    for name in MODELS {
        let error = largest_error(&mut load(name, &config()), &prompts(name));
        assert!(error < 1e-4, "{name}: an error of {error:e} of the logits' range");
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in MODELS {
        let prompts = prompts(name);
        let requests = prompts.iter().zip(0..).map(|(prompt, id)| request(id, &prompt.tokens, 64)).collect();
        let (outputs, _) = serve(&mut load(name, &config()), requests).unwrap();
        for (prompt, output) in prompts.iter().zip(&outputs) {
            assert_eq!(output.tokens, prompt.greedy, "{name}, a prompt of {} tokens", prompt.tokens.len());
        }
    }
}

/// What is rounded to 8 or 11 significant bits is the KV cache, and in the GGUF file the weights too; those of the
/// other models are exact in both formats. The bounds count units of that rounding.
#[test]
fn sixteen_bits_stay_close_to_the_reference() {
    for (dtype, name_of_dtype, unit) in
        [(DtypeChoice::Bfloat16, "bfloat16", (-8f32).exp2()), (DtypeChoice::Float16, "float16", (-11f32).exp2())]
    {
        for name in MODELS {
            let mut engine = load(name, &EngineConfig { dtype, ..config() });
            assert_eq!(engine.facts().dtype, name_of_dtype);
            let error = largest_error(&mut engine, &prompts(name));
            // Phi 3 multiplies keys, and queries again, by a magnitude above 1.
            let units = if name == "llama-gguf" {
                10.0
            } else if name.starts_with("phi3") {
                8.0
            } else {
                4.0
            };
            let bound = units * unit;
            assert!(error < bound, "{name} in {name_of_dtype}: an error of {error:e} of the logits' range");
            assert!(error > unit / 100.0, "{name} in {name_of_dtype}: computed in single precision");
        }
    }
}

#[test]
fn auto_is_the_checkpoints_own_format() {
    for (name, expected) in [("llama-gqa", "bfloat16"), ("llama-mqa-tied", "float32")] {
        let config = EngineConfig { dtype: DtypeChoice::Auto, ..config() };
        assert_eq!(load(name, &config).facts().dtype, expected);
    }
}

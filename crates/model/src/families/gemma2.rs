//! Gemma 2: norms on both sides of every block, scores and logits kept within bounds, a window in every other layer.

use super::plain::{self, Defaults, Sizes};
use super::{Family, GgufFamily, rope, windows};
use crate::config_json::ConfigJson;
use crate::gguf::Gguf;
use crate::layout::Layout;
use crate::{Activation, DecoderConfig, Error};

/// Its files hold norms less by one; converting to GGUF adds it.
pub(super) const LAYOUT: Layout = Layout { norms_with_offset: true, ..Layout::PLAIN };
pub(super) const GGUF_LAYOUT: Layout = Layout::PLAIN;

/// `Gemma2Config`.
const DEFAULT_WINDOW: usize = 4096;
const DEFAULT_ATTENTION_SOFTCAP: f64 = 50.0;
const DEFAULT_LOGITS_SOFTCAP: f64 = 30.0;

/// Layers of the 27B model, the only one whose scores are scaled by another width than the head's. GGUF files do not
/// say; llama.cpp goes by this number, too (`src/llama-model.cpp`).
const LAYERS_OF_27B: usize = 46;

pub(super) const FAMILY: Family = Family {
    architecture: "Gemma2ForCausalLM",
    model_type: "gemma2",
    layout: LAYOUT,
    from_config_json,
    gguf: Some(GgufFamily {
        architecture: "gemma2",
        layout: GGUF_LAYOUT,
        rotates_partly: false,
        complete: complete_gguf,
    }),
};

fn from_config_json(json: &ConfigJson) -> Result<DecoderConfig, Error> {
    let mut config = shared_with_gemma3(json, 8192, None)?;
    config.rope = rope::from_config_json(json, &config, false)?;
    let window = Some(json.size("sliding_window")?.unwrap_or(DEFAULT_WINDOW));
    config.windows = windows::from_config_json(json, config.layers, window, |layer| layer % 2 == 0)?;
    let softcap = |key, default| Ok(json.nullable_positive(key, default)?.map(|cap| cap as f32));
    config.attention_softcap = softcap("attn_logit_softcapping", Some(DEFAULT_ATTENTION_SOFTCAP))?;
    config.logits_softcap = softcap("final_logit_softcapping", Some(DEFAULT_LOGITS_SOFTCAP))?;
    Ok(config)
}

/// Settings that Gemma 2 and 3 have in common.
pub(super) fn shared_with_gemma3(
    json: &ConfigJson,
    max_position: usize,
    sizes: Option<Sizes>,
) -> Result<DecoderConfig, Error> {
    let key = if json.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    if json.text(key)?.is_some_and(|name| name != "gelu_pytorch_tanh") {
        return Err(json.unsupported(key, "gelu_pytorch_tanh is"));
    }
    plain::refuse_flags(json, &["attention_bias", "use_bidirectional_attention"])?;
    let defaults = Defaults {
        max_position,
        head_dim: Some(256),
        tied_head: true,
        kv_heads: Some(4),
        sizes,
        ..Defaults::default()
    };
    let mut config = plain::from_config_json(json, &defaults)?;
    let scaled_by = json.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    config.attention_scale = scaled_by.powf(-0.5) as f32;
    add_what_gemma_has(&mut config);
    Ok(config)
}

/// Settings of every Gemma, which files do not contain.
pub(super) fn add_what_gemma_has(config: &mut DecoderConfig) {
    config.activation = Activation::GeluTanh;
    config.output_norms = true;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
}

/// Scales scores by the width of the stream in the model that has so many layers.
pub(super) fn scale_scores_of_27b(config: &mut DecoderConfig, layers_of_27b: usize) {
    if config.layers == layers_of_27b {
        config.attention_scale = ((config.hidden_size / config.heads) as f32).powf(-0.5);
    }
}

fn complete_gguf(gguf: &Gguf, config: &mut DecoderConfig) -> Result<(), Error> {
    let metadata = &gguf.metadata;
    add_what_gemma_has(config);
    scale_scores_of_27b(config, LAYERS_OF_27B);
    let window = metadata.size("gemma2.attention.sliding_window")?.unwrap_or(DEFAULT_WINDOW);
    config.windows = windows::from_gguf(gguf, "gemma2", config.layers, window, |layer| layer % 2 == 0)?;
    let softcap = |key, default| Ok(Some(metadata.positive(key)?.unwrap_or(default) as f32));
    config.attention_softcap = softcap("gemma2.attn_logit_softcapping", DEFAULT_ATTENTION_SOFTCAP)?;
    config.logits_softcap = softcap("gemma2.final_logit_softcapping", DEFAULT_LOGITS_SOFTCAP)?;
    Ok(())
}

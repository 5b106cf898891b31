//! Gemma 3 (text): Gemma 2 with normalised heads in place of bounded scores, and two rotary embeddings, one for the
//! layers with a window and one for those without.

use super::gemma2::{GGUF_LAYOUT, LAYOUT, add_what_gemma_has, scale_scores_of_27b, shared_with_gemma3};
use super::plain::Sizes;
use super::{Family, GgufFamily, rope, windows};
use crate::config_json::ConfigJson;
use crate::gguf::Gguf;
use crate::{DecoderConfig, Error, RopeConfig, RopeScaling};

/// `Gemma3TextConfig`.
const SIZES: Sizes = Sizes { vocab_size: 262_208, hidden_size: 2304, intermediate_size: 9216, layers: 26, heads: 8 };
const DEFAULT_WINDOW: usize = 4096;
const DEFAULT_THETA: f64 = 1_000_000.0;
/// One layer in so many sees everything.
const PATTERN: usize = 6;
/// Base in layers with a window; GGUF files do not carry it.
const WINDOWED_THETA: f64 = 10_000.0;
/// As Gemma 2's 27B model.
const LAYERS_OF_27B: usize = 62;

pub(super) const FAMILY: Family = Family {
    architecture: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    layout: LAYOUT,
    from_config_json,
    gguf: Some(GgufFamily {
        architecture: "gemma3",
        layout: GGUF_LAYOUT,
        rotates_partly: false,
        complete: complete_gguf,
    }),
};

fn from_config_json(json: &ConfigJson) -> Result<DecoderConfig, Error> {
    let mut config = shared_with_gemma3(json, 131_072, Some(SIZES))?;
    config.qk_norm = true;
    config.rope = kind_of_rope(json, &config, "full_attention")?;
    config.windowed_rope = Some(kind_of_rope(json, &config, "sliding_attention")?);
    let window = Some(json.size("sliding_window")?.unwrap_or(DEFAULT_WINDOW));
    let pattern = json.size("sliding_window_pattern")?.unwrap_or(PATTERN);
    let usually = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    config.windows = windows::from_config_json(json, config.layers, window, usually)?;
    let softcap = |key| Ok(json.nullable_positive(key, None)?.map(|cap| cap as f32));
    config.attention_softcap = softcap("attn_logit_softcapping")?;
    config.logits_softcap = softcap("final_logit_softcapping")?;
    Ok(config)
}

/// `rope_parameters` has one object a kind of layer; before transformers 5, `rope_scaling` was about the layers that see
/// everything, and the others had a base of their own.
fn kind_of_rope(json: &ConfigJson, config: &DecoderConfig, kind: &str) -> Result<RopeConfig, Error> {
    let (dim, max_position) = (config.head_dim, config.max_position);
    let windowed = kind == "sliding_attention";
    if let Some(parameters) = json.object("rope_parameters")? {
        let parameters = parameters.object(kind)?.ok_or_else(|| parameters.error(kind, "is missing"))?;
        let default = if windowed { WINDOWED_THETA } else { DEFAULT_THETA };
        let theta = parameters.positive("rope_theta")?.unwrap_or(default);
        return Ok(RopeConfig { theta, dim, scaling: rope::scaling(json, &parameters, dim, max_position)? });
    }
    if windowed {
        let theta = json.positive("rope_local_base_freq")?.unwrap_or(WINDOWED_THETA);
        return Ok(RopeConfig { theta, dim, scaling: RopeScaling::None });
    }
    let scaling = match json.object("rope_scaling")? {
        Some(scaling) => rope::scaling(json, &scaling, dim, max_position)?,
        None => RopeScaling::None,
    };
    Ok(RopeConfig { theta: json.positive("rope_theta")?.unwrap_or(DEFAULT_THETA), dim, scaling })
}

fn complete_gguf(gguf: &Gguf, config: &mut DecoderConfig) -> Result<(), Error> {
    let metadata = &gguf.metadata;
    add_what_gemma_has(config);
    config.qk_norm = true;
    scale_scores_of_27b(config, LAYERS_OF_27B);
    let dim = config.head_dim;
    config.windowed_rope = Some(RopeConfig { theta: WINDOWED_THETA, dim, scaling: RopeScaling::None });
    let window = metadata.size("gemma3.attention.sliding_window")?.unwrap_or(DEFAULT_WINDOW);
    let usually = |layer: usize| !(layer + 1).is_multiple_of(PATTERN);
    config.windows = windows::from_gguf(gguf, "gemma3", config.layers, window, usually)?;
    Ok(())
}

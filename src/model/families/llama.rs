//! Llama 2 and 3.x, and what calls itself that (SmolLM2, TinyLlama, …). Defaults are those of transformers'
//! `LlamaConfig`.

use super::Family;
use crate::model::config_json::ConfigJson;
use crate::model::{Activation, DecoderConfig, Error, RopeConfig, RopeScaling};

pub(super) const FAMILY: Family = Family { architecture: "LlamaForCausalLM", model_type: "llama", from_config_json };

fn from_config_json(json: &ConfigJson) -> Result<DecoderConfig, Error> {
    match json.text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(_) => return Err(json.unsupported("hidden_act", "silu is")),
    }
    for bias in ["attention_bias", "mlp_bias"] {
        if json.flag(bias)? == Some(true) {
            return Err(json.unsupported(bias, "false is"));
        }
    }
    let hidden_size = json.required_size("hidden_size")?;
    let heads = json.required_size("num_attention_heads")?;
    let kv_heads = json.size("num_key_value_heads")?.unwrap_or(heads);
    let head_dim = match json.size("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => return Err(json.error("hidden_size", format!("{hidden_size} is not a multiple of the {heads} heads"))),
    };
    let max_position = json.size("max_position_embeddings")?.unwrap_or(2048);
    let config = DecoderConfig {
        vocab_size: json.required_size("vocab_size")?,
        hidden_size,
        intermediate_size: json.required_size("intermediate_size")?,
        layers: json.required_size("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        rms_norm_eps: json.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        activation: Activation::Silu,
        rope: rope(json, head_dim, max_position)?,
        tied_head: json.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: false,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        max_position,
    };
    config.check().map_err(|(key, reason)| json.error(key, reason))?;
    Ok(config)
}

/// Rotary settings: `rope_theta` and `rope_scaling` up to transformers 4, `rope_parameters` from 5 on.
fn rope(json: &ConfigJson, head_dim: usize, max_position: usize) -> Result<RopeConfig, Error> {
    let parameters = json.object("rope_parameters")?;
    let scaling = match &parameters {
        Some(parameters) => Some(parameters.clone()),
        None => json.object("rope_scaling")?,
    };
    let theta = match &parameters {
        Some(parameters) => parameters.positive("rope_theta")?,
        None => None,
    };
    let theta = theta.or(json.positive("rope_theta")?).unwrap_or(10_000.0);
    for place in [Some(json), scaling.as_ref()].into_iter().flatten() {
        if place.positive("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(place.unsupported("partial_rotary_factor", "1 is"));
        }
    }
    let scaling = match &scaling {
        None => RopeScaling::None,
        Some(scaling) => self::scaling(scaling, max_position)?,
    };
    Ok(RopeConfig { theta, dim: head_dim, scaling })
}

fn scaling(json: &ConfigJson, max_position: usize) -> Result<RopeScaling, Error> {
    let key = if json.get("rope_type").is_some() { "rope_type" } else { "type" };
    match json.text(key)? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: json.required_positive("factor")? }),
        Some("llama3") => {
            let low_freq_factor = json.required_positive("low_freq_factor")?;
            let high_freq_factor = json.required_positive("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                return Err(
                    json.error("high_freq_factor", format!("should be above low_freq_factor, {low_freq_factor}"))
                );
            }
            Ok(RopeScaling::Llama3 {
                factor: json.required_positive("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position: json.size("original_max_position_embeddings")?.unwrap_or(max_position),
            })
        }
        Some(_) => Err(json.unsupported(key, "default, linear and llama3 are")),
    }
}

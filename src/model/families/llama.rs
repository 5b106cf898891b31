//! Llama 2 and 3.x, and what calls itself that (SmolLM2, TinyLlama, …). Defaults are those of transformers'
//! `LlamaConfig`.

use super::Family;
use crate::model::config_json::ConfigJson;
use crate::model::gguf::Gguf;
use crate::model::{Activation, DecoderConfig, Error, RopeConfig, RopeScaling};

pub(super) const FAMILY: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    from_config_json,
    gguf_architecture: "llama",
    gguf_rotates_pairs: true,
    from_gguf,
};

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

/// Keys are those of llama.cpp (`gguf-py/gguf/constants.py`), defaults those of its loader.
fn from_gguf(gguf: &Gguf) -> Result<DecoderConfig, Error> {
    let metadata = &gguf.metadata;
    // Mixtral calls itself llama, too.
    if metadata.get("llama.expert_count").is_some_and(|count| *count != 0.into()) {
        return Err(metadata.unsupported("llama.expert_count", "a single feed-forward network a layer is"));
    }
    let hidden_size = metadata.required_size("llama.embedding_length")?;
    let heads = metadata.required_size("llama.attention.head_count")?;
    let kv_heads = metadata.size("llama.attention.head_count_kv")?.unwrap_or(heads);
    let head_dim = match metadata.size("llama.attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let reason = format!("{hidden_size} is not a multiple of the {heads} heads");
            return Err(metadata.error("llama.embedding_length", reason));
        }
    };
    if metadata.size("llama.attention.value_length")?.is_some_and(|value_length| value_length != head_dim) {
        return Err(metadata.unsupported("llama.attention.value_length", &format!("the key's, {head_dim}, is")));
    }
    if metadata.size("llama.rope.dimension_count")?.is_some_and(|rotated| rotated != head_dim) {
        return Err(metadata.unsupported("llama.rope.dimension_count", &format!("the whole head, {head_dim}, is")));
    }
    let eps = "llama.attention.layer_norm_rms_epsilon";
    let config = DecoderConfig {
        vocab_size: gguf.embedding_rows()?,
        hidden_size,
        intermediate_size: metadata.required_size("llama.feed_forward_length")?,
        layers: metadata.required_size("llama.block_count")?,
        heads,
        kv_heads,
        head_dim,
        rms_norm_eps: metadata.positive(eps)?.ok_or_else(|| metadata.error(eps, "is missing"))? as f32,
        activation: Activation::Silu,
        rope: RopeConfig {
            theta: metadata.positive("llama.rope.freq_base")?.unwrap_or(10_000.0),
            dim: head_dim,
            scaling: gguf_scaling(gguf, head_dim)?,
        },
        tied_head: !gguf.has_tensor("output.weight"),
        qkv_bias: false,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        max_position: metadata.required_size("llama.context_length")?,
    };
    config.check().map_err(|(key, reason)| metadata.error(key, reason))?;
    Ok(config)
}

/// Llama 3's blend is not in the metadata: its converter works out a factor for each frequency and stores them.
fn gguf_scaling(gguf: &Gguf, head_dim: usize) -> Result<RopeScaling, Error> {
    let metadata = &gguf.metadata;
    let key = "llama.rope.scaling.type";
    let linear = match metadata.text(key)? {
        None => metadata.positive("llama.rope.scale_linear")?,
        Some("none") => None,
        Some("linear") => Some(metadata.positive("llama.rope.scaling.factor")?.unwrap_or(1.0)),
        Some(_) => return Err(metadata.unsupported(key, "none and linear are")),
    };
    match (gguf.rope_factors(head_dim / 2)?, linear) {
        (None, None) => Ok(RopeScaling::None),
        (None, Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some(factors), None) => Ok(RopeScaling::Factors(factors)),
        (Some(_), Some(_)) => {
            Err(metadata.unsupported(key, "scaling together with rope_freqs.weight is not, either alone is"))
        }
    }
}

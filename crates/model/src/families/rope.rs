//! Rotary settings in all their spellings: `rope_theta` and `rope_scaling` up to transformers 4, `rope_parameters` from 5
//! on, and keys and tensors of GGUF files.

use crate::config_json::ConfigJson;
use crate::gguf::Gguf;
use crate::{DecoderConfig, Error, RopeConfig, RopeScaling};

/// The base where a file names none.
pub(super) const DEFAULT_THETA: f64 = 10_000.0;

/// The rotary embedding of `config`, a model whose layers all have the same. `partial`: the family heeds
/// `partial_rotary_factor`.
pub(super) fn from_config_json(json: &ConfigJson, config: &DecoderConfig, partial: bool) -> Result<RopeConfig, Error> {
    let parameters = json.object("rope_parameters")?;
    let scaling = match &parameters {
        Some(parameters) => Some(parameters.clone()),
        None => json.object("rope_scaling")?,
    };
    let theta = match &parameters {
        Some(parameters) => parameters.positive("rope_theta")?,
        None => None,
    };
    // The newer place wins where a file has both.
    let theta = theta.or(json.positive("rope_theta")?).unwrap_or(DEFAULT_THETA);
    let mut rotated = 1.0;
    for place in [Some(json), scaling.as_ref()].into_iter().flatten() {
        match place.positive("partial_rotary_factor")? {
            None => {}
            Some(factor) if factor == 1.0 || (partial && factor < 1.0) => rotated = factor,
            Some(_) => {
                return Err(place.unsupported("partial_rotary_factor", if partial { "up to 1 is" } else { "1 is" }));
            }
        }
    }
    // Rounded down, as in transformers.
    let dim = (config.head_dim as f64 * rotated) as usize;
    let scaling = match &scaling {
        None => RopeScaling::None,
        Some(scaling) => self::scaling(json, scaling, dim, config.max_position)?,
    };
    Ok(RopeConfig { theta, dim, scaling })
}

/// Scaling in `scaling`, an object inside of `json`, for `dim` rotated entries.
pub(super) fn scaling(
    json: &ConfigJson,
    scaling: &ConfigJson,
    dim: usize,
    max_position: usize,
) -> Result<RopeScaling, Error> {
    // `type` is the older spelling.
    let key = if scaling.get("rope_type").is_some() { "rope_type" } else { "type" };
    match scaling.text(key)? {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: scaling.required_positive("factor")? }),
        Some("llama3") => llama3(scaling, max_position),
        // Phi 3 called it su before it had a name.
        Some("longrope" | "su") => longrope(json, scaling, dim, max_position),
        Some(_) => Err(scaling.unsupported(key, "default, linear, llama3 and longrope are")),
    }
}

fn llama3(scaling: &ConfigJson, max_position: usize) -> Result<RopeScaling, Error> {
    let low_freq_factor = scaling.required_positive("low_freq_factor")?;
    let high_freq_factor = scaling.required_positive("high_freq_factor")?;
    // The blend between the two divides by their difference.
    if high_freq_factor <= low_freq_factor {
        return Err(scaling.error("high_freq_factor", format!("should be above low_freq_factor, {low_freq_factor}")));
    }
    Ok(RopeScaling::Llama3 {
        factor: scaling.required_positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position: scaling.size("original_max_position_embeddings")?.unwrap_or(max_position),
    })
}

fn longrope(json: &ConfigJson, scaling: &ConfigJson, dim: usize, max_position: usize) -> Result<RopeScaling, Error> {
    let factors = |key: &str| {
        let factors = scaling.positives(key)?.ok_or_else(|| scaling.error(key, "is missing"))?;
        if factors.len() != dim / 2 {
            let reason = format!("has {} factors, but {} pairs of a head are rotated", factors.len(), dim / 2);
            return Err(scaling.error(key, reason));
        }
        Ok(factors)
    };
    let key = "original_max_position_embeddings";
    // Phi 3 has the key beside `rope_scaling`, other models inside of it.
    let original = scaling.size(key)?.or(json.size(key)?);
    let original_max_position = original.unwrap_or(max_position);
    let factor = scaling.positive("factor")?.unwrap_or(max_position as f64 / original_max_position as f64);
    let magnitude = match scaling.positive("attention_factor")? {
        Some(magnitude) => magnitude as f32,
        None => longrope_magnitude(factor, original_max_position),
    };
    let (short, long) = (factors("short_factor")?, factors("long_factor")?);
    Ok(RopeScaling::LongRope { short, long, original_max_position, magnitude })
}

/// `_compute_longrope_parameters` of transformers' `modeling_rope_utils.py`.
fn longrope_magnitude(factor: f64, original_max_position: usize) -> f32 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_max_position as f64).ln()).sqrt() as f32 }
}

/// Reads `ARCHITECTURE.rope.*` and the tensors of factors.
pub(super) fn from_gguf(
    gguf: &Gguf,
    architecture: &str,
    config: &DecoderConfig,
    partial: bool,
) -> Result<RopeConfig, Error> {
    let metadata = &gguf.metadata;
    let key = |name: &str| format!("{architecture}.rope.{name}");
    let rotated = key("dimension_count");
    let dim = metadata.size(&rotated)?.unwrap_or(config.head_dim);
    if dim != config.head_dim && !partial {
        return Err(metadata.unsupported(&rotated, &format!("the whole head, {}, is", config.head_dim)));
    }
    let kind = key("scaling.type");
    let linear = match metadata.text(&kind)? {
        None => metadata.positive(&key("scale_linear"))?,
        Some("none" | "longrope") => None,
        Some("linear") => Some(metadata.positive(&key("scaling.factor"))?.unwrap_or(1.0)),
        Some(_) => return Err(metadata.unsupported(&kind, "none, linear and longrope are")),
    };
    // Llama 3's blend is not in the metadata: its converter works out a factor for each frequency and stores them.
    let scaling = match (gguf.rope_factors(dim / 2)?, gguf.short_and_long_rope_factors(dim / 2)?, linear) {
        (None, [None, None], None) => RopeScaling::None,
        (None, [None, None], Some(factor)) => RopeScaling::Linear { factor },
        (Some(factors), [None, None], None) => RopeScaling::Factors(factors),
        (None, [Some(short), Some(long)], None) => {
            let original = key("scaling.original_context_length");
            let original_max_position =
                metadata.size(&original)?.ok_or_else(|| metadata.error(&original, "is missing"))?;
            let magnitude = match metadata.positive(&key("scaling.attn_factor"))? {
                Some(magnitude) => magnitude as f32,
                None => {
                    longrope_magnitude(config.max_position as f64 / original_max_position as f64, original_max_position)
                }
            };
            RopeScaling::LongRope { short, long, original_max_position, magnitude }
        }
        _ => {
            return Err(metadata.unsupported(&kind, "together with tensors of factors it is not, either alone is"));
        }
    };
    Ok(RopeConfig { theta: metadata.positive(&key("freq_base"))?.unwrap_or(DEFAULT_THETA), dim, scaling })
}

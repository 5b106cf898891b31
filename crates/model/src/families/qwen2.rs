//! Qwen 2 and 2.5: biases on q, k and v; a window in the upper layers where it is switched on.

use super::plain::{self, Defaults, Sizes};
use super::{Family, GgufFamily, rope, windows};
use crate::config_json::ConfigJson;
use crate::gguf::Gguf;
use crate::layout::Layout;
use crate::{DecoderConfig, Error};

/// `Qwen2Config`, and `Qwen3Config`.
pub(super) const SIZES: Sizes =
    Sizes { vocab_size: 151_936, hidden_size: 4096, intermediate_size: 22_016, layers: 32, heads: 32 };

pub(super) const FAMILY: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    layout: Layout::PLAIN,
    from_config_json,
    gguf: Some(GgufFamily {
        architecture: "qwen2",
        layout: Layout::PLAIN,
        rotates_partly: false,
        complete: complete_gguf,
    }),
};

fn from_config_json(json: &ConfigJson) -> Result<DecoderConfig, Error> {
    plain::require_silu(json)?;
    let defaults = Defaults { max_position: 32_768, kv_heads: Some(32), sizes: Some(SIZES), ..Defaults::default() };
    let mut config = plain::from_config_json(json, &defaults)?;
    config.rope = rope::from_config_json(json, &config, false)?;
    config.windows = upper_windows(json, config.layers)?;
    config.qkv_bias = true;
    Ok(config)
}

/// Layers from `max_window_layers` on have a window, if `use_sliding_window` says so.
pub(super) fn upper_windows(json: &ConfigJson, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    let window = match json.flag("use_sliding_window")? {
        Some(true) => json.size("sliding_window")?,
        _ => None,
    };
    // 0 is a number of layers here.
    let below = json.get("max_window_layers").and_then(|count| count.as_u64()).unwrap_or(28) as usize;
    windows::from_config_json(json, layers, window, |layer| layer >= below)
}

fn complete_gguf(_gguf: &Gguf, config: &mut DecoderConfig) -> Result<(), Error> {
    config.qkv_bias = true;
    Ok(())
}

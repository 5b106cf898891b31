//! Mistral: Llama with a window in every layer, where `sliding_window` is a number.

use super::plain::{self, Defaults, Sizes};
use super::{Family, rope};
use crate::config_json::ConfigJson;
use crate::layout::Layout;
use crate::{DecoderConfig, Error};

/// `MistralConfig`.
const SIZES: Sizes = Sizes { vocab_size: 32_000, hidden_size: 4096, intermediate_size: 14_336, layers: 32, heads: 32 };

pub(super) const FAMILY: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    layout: Layout::PLAIN,
    from_config_json,
    // Its converter writes Llama's files.
    gguf: None,
};

fn from_config_json(json: &ConfigJson) -> Result<DecoderConfig, Error> {
    plain::require_silu(json)?;
    let defaults = Defaults { max_position: 4096 * 32, kv_heads: Some(8), sizes: Some(SIZES), ..Defaults::default() };
    let mut config = plain::from_config_json(json, &defaults)?;
    config.rope = rope::from_config_json(json, &config, false)?;
    config.windows.fill(json.size("sliding_window")?);
    Ok(config)
}

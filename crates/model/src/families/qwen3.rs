//! Qwen 3: heads of q and k normalised, no biases, heads of 128 whatever the width.

use super::plain::{self, Defaults};
use super::qwen2::SIZES;
use super::{Family, GgufFamily, qwen2, rope};
use crate::config_json::ConfigJson;
use crate::gguf::Gguf;
use crate::layout::Layout;
use crate::{DecoderConfig, Error};

pub(super) const FAMILY: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    layout: Layout::PLAIN,
    from_config_json,
    gguf: Some(GgufFamily {
        architecture: "qwen3",
        layout: Layout::PLAIN,
        rotates_partly: false,
        complete: complete_gguf,
    }),
};

fn from_config_json(json: &ConfigJson) -> Result<DecoderConfig, Error> {
    plain::require_silu(json)?;
    plain::refuse_flags(json, &["attention_bias"])?;
    let defaults = Defaults {
        max_position: 32_768,
        head_dim: Some(128),
        kv_heads: Some(32),
        sizes: Some(SIZES),
        ..Defaults::default()
    };
    let mut config = plain::from_config_json(json, &defaults)?;
    config.rope = rope::from_config_json(json, &config, false)?;
    config.windows = qwen2::upper_windows(json, config.layers)?;
    config.qk_norm = true;
    Ok(config)
}

fn complete_gguf(_gguf: &Gguf, config: &mut DecoderConfig) -> Result<(), Error> {
    config.qk_norm = true;
    Ok(())
}

//! Phi 3, 3.5 and 4 (mini): q, k and v in one tensor, gate and up in another; part of a head rotated; frequencies
//! stretched by two lists of factors.

use super::plain::{self, Defaults};
use super::{Family, GgufFamily, rope};
use crate::config_json::ConfigJson;
use crate::gguf::Gguf;
use crate::layout::Layout;
use crate::{DecoderConfig, Error};

const FUSED: Layout = Layout { fused: true, ..Layout::PLAIN };

pub(super) const FAMILY: Family = Family {
    architecture: "Phi3ForCausalLM",
    model_type: "phi3",
    layout: FUSED,
    from_config_json,
    gguf: Some(GgufFamily { architecture: "phi3", layout: FUSED, rotates_partly: true, complete: complete_gguf }),
};

fn from_config_json(json: &ConfigJson) -> Result<DecoderConfig, Error> {
    plain::require_silu(json)?;
    plain::refuse_flags(json, &["attention_bias", "mlp_bias"])?;
    let defaults = Defaults { max_position: 4096, rms_norm_eps: 1e-5, ..Defaults::default() };
    let mut config = plain::from_config_json(json, &defaults)?;
    config.rope = rope::from_config_json(json, &config, true)?;
    config.windows.fill(json.size("sliding_window")?);
    Ok(config)
}

fn complete_gguf(gguf: &Gguf, config: &mut DecoderConfig) -> Result<(), Error> {
    config.windows.fill(gguf.metadata.size("phi3.attention.sliding_window")?);
    Ok(())
}

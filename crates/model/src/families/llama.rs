//! Llama 2 and 3.x, and what calls itself that (SmolLM2, TinyLlama, …).

use super::plain::{self, Defaults, Sizes};
use super::{Family, GgufFamily, rope};
use crate::config_json::ConfigJson;
use crate::gguf::Gguf;
use crate::layout::Layout;
use crate::{DecoderConfig, Error};

/// Defaults of `LlamaConfig`.
const SIZES: Sizes = Sizes { vocab_size: 32_000, hidden_size: 4096, intermediate_size: 11_008, layers: 32, heads: 32 };

pub(super) const FAMILY: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    layout: Layout::PLAIN,
    from_config_json,
    gguf: Some(GgufFamily {
        architecture: "llama",
        layout: Layout { rotates_pairs: true, ..Layout::PLAIN },
        rotates_partly: false,
        complete: refuse_experts,
    }),
};

fn from_config_json(json: &ConfigJson) -> Result<DecoderConfig, Error> {
    plain::require_silu(json)?;
    plain::refuse_flags(json, &["attention_bias", "mlp_bias"])?;
    let mut config = plain::from_config_json(json, &Defaults { sizes: Some(SIZES), ..Defaults::default() })?;
    config.rope = rope::from_config_json(json, &config, false)?;
    Ok(config)
}

/// Mixtral calls itself llama, too.
fn refuse_experts(gguf: &Gguf, _config: &mut DecoderConfig) -> Result<(), Error> {
    let metadata = &gguf.metadata;
    if metadata.get("llama.expert_count").is_some_and(|count| *count != 0.into()) {
        return Err(metadata.unsupported("llama.expert_count", "a single feed-forward network a layer is"));
    }
    Ok(())
}

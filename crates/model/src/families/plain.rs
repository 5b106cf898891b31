//! Settings that all families spell alike: a decoder without the peculiarities of a family, which each then adds.

use crate::config_json::ConfigJson;
use crate::gguf::Gguf;
use crate::{Activation, DecoderConfig, Error, RopeConfig};

/// Defaults of a family's `config.json`, those of its configuration class in transformers.
pub(super) struct Defaults {
    pub max_position: usize,
    pub rms_norm_eps: f64,
    /// `None` is hidden / heads.
    pub head_dim: Option<usize>,
    pub tied_head: bool,
    /// Default of an absent key; `null` and `None` are as many as heads.
    pub kv_heads: Option<usize>,
    /// Sizes that the `text_config` of a checkpoint of several modalities leaves out where they are the class's.
    pub sizes: Option<Sizes>,
}

/// A decoder's sizes, as a configuration class of transformers has them.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
}

/// Defaults of Llama.
impl Default for Defaults {
    fn default() -> Self {
        Self { max_position: 2048, rms_norm_eps: 1e-6, head_dim: None, tied_head: false, kv_heads: None, sizes: None }
    }
}

/// Reads the keys that all families have. The whole head is rotated at the default base, unscaled: what is to be done
/// about that is the family's business.
pub(super) fn from_config_json(json: &ConfigJson, defaults: &Defaults) -> Result<DecoderConfig, Error> {
    // A configuration of its own that lacks a size is damaged.
    let sizes = defaults.sizes.filter(|_| json.is_nested());
    let size = |key, default: fn(Sizes) -> usize| match sizes {
        Some(sizes) => Ok(json.size(key)?.unwrap_or(default(sizes))),
        None => json.required_size(key),
    };
    let hidden_size = size("hidden_size", |sizes| sizes.hidden_size)?;
    let heads = size("num_attention_heads", |sizes| sizes.heads)?;
    // A null counts as given: transformers then takes as many as heads, not the family's default.
    let kv_heads = if json.has("num_key_value_heads") { None } else { defaults.kv_heads };
    let head_dim = match json.size("head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => return Err(json.error("hidden_size", format!("{hidden_size} is not a multiple of the {heads} heads"))),
    };
    let config = DecoderConfig {
        vocab_size: size("vocab_size", |sizes| sizes.vocab_size)?,
        hidden_size,
        intermediate_size: size("intermediate_size", |sizes| sizes.intermediate_size)?,
        layers: size("num_hidden_layers", |sizes| sizes.layers)?,
        heads,
        kv_heads: json.size("num_key_value_heads")?.or(kv_heads).unwrap_or(heads),
        rms_norm_eps: json.positive("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps) as f32,
        tied_head: json.flag("tie_word_embeddings")?.unwrap_or(defaults.tied_head),
        max_position: json.size("max_position_embeddings")?.unwrap_or(defaults.max_position),
        ..featureless(head_dim)
    };
    everywhere_unlimited(config).map_err(|(key, reason)| json.error(key, reason))
}

/// Refuses a switch of the family that is on.
pub(super) fn refuse_flags(json: &ConfigJson, keys: &[&str]) -> Result<(), Error> {
    for key in keys {
        if json.flag(key)? == Some(true) {
            return Err(json.unsupported(key, "false is"));
        }
    }
    Ok(())
}

/// Refuses an activation other than SiLU.
pub(super) fn require_silu(json: &ConfigJson) -> Result<(), Error> {
    match json.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(_) => Err(json.unsupported("hidden_act", "silu is")),
    }
}

/// Reads the keys that all families have in GGUF files, each with the architecture's name before it. They are those of
/// llama.cpp (`gguf-py/gguf/constants.py`), defaults those of its loader.
pub(super) fn from_gguf(gguf: &Gguf, architecture: &str) -> Result<DecoderConfig, Error> {
    let metadata = &gguf.metadata;
    let key = |name: &str| format!("{architecture}.{name}");
    let hidden_size = metadata.required_size(&key("embedding_length"))?;
    let heads = metadata.required_size(&key("attention.head_count"))?;
    let head_dim = match metadata.size(&key("attention.key_length"))? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let reason = format!("{hidden_size} is not a multiple of the {heads} heads");
            return Err(metadata.error(&key("embedding_length"), reason));
        }
    };
    let value_length = key("attention.value_length");
    if metadata.size(&value_length)?.is_some_and(|value_length| value_length != head_dim) {
        return Err(metadata.unsupported(&value_length, &format!("the key's, {head_dim}, is")));
    }
    let eps = key("attention.layer_norm_rms_epsilon");
    let config = DecoderConfig {
        vocab_size: gguf.embedding_rows()?,
        hidden_size,
        intermediate_size: metadata.required_size(&key("feed_forward_length"))?,
        layers: metadata.required_size(&key("block_count"))?,
        heads,
        kv_heads: metadata.size(&key("attention.head_count_kv"))?.unwrap_or(heads),
        rms_norm_eps: metadata.positive(&eps)?.ok_or_else(|| metadata.error(&eps, "is missing"))? as f32,
        tied_head: !gguf.has_tensor("output.weight"),
        max_position: metadata.required_size(&key("context_length"))?,
        ..featureless(head_dim)
    };
    everywhere_unlimited(config).map_err(|(key, reason)| metadata.error(key, reason))
}

/// No size but the head's, and nothing that a family has and another has not.
fn featureless(head_dim: usize) -> DecoderConfig {
    DecoderConfig {
        vocab_size: 0,
        hidden_size: 0,
        intermediate_size: 0,
        layers: 0,
        heads: 0,
        kv_heads: 0,
        head_dim,
        rms_norm_eps: 0.0,
        activation: Activation::Silu,
        rope: RopeConfig::plain(head_dim),
        windowed_rope: None,
        windows: Vec::new(),
        tied_head: false,
        qkv_bias: false,
        qk_norm: false,
        output_norms: false,
        embedding_scale: 1.0,
        // Scaled dot-product attention (Vaswani et al., 2017).
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_softcap: None,
        logits_softcap: None,
        max_position: 0,
    }
}

/// No layer has a window; there are believably many of them.
fn everywhere_unlimited(mut config: DecoderConfig) -> Result<DecoderConfig, (&'static str, String)> {
    config.check()?;
    config.windows = vec![None; config.layers];
    Ok(config)
}

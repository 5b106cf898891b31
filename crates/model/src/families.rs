//! One file a model family: each maps its `config.json`, and its keys in GGUF files, to [`super::DecoderConfig`] and
//! copies no layer.

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod plain;
mod qwen2;
mod qwen3;
mod rope;
mod windows;

use super::config_json::ConfigJson;
use super::gguf::Gguf;
use super::layout::Layout;
use super::{DecoderConfig, Error};

/// Configuration of one family in Hugging Face's format.
struct Family {
    /// `architectures[0]` of `config.json`.
    architecture: &'static str,
    /// `model_type` of `config.json`.
    model_type: &'static str,
    /// Layout of its checkpoints in Hugging Face's format.
    layout: Layout,
    /// Reads `config.json`; refuses by name what the decoder does not do.
    from_config_json: fn(&ConfigJson) -> Result<DecoderConfig, Error>,
    /// Its GGUF files; `None` where they call themselves another family's.
    gguf: Option<GgufFamily>,
}

/// Configuration of one family in GGUF.
struct GgufFamily {
    /// `general.architecture`, and the first part of the family's own keys.
    architecture: &'static str,
    layout: Layout,
    /// Part of a head may be rotated.
    rotates_partly: bool,
    /// Completes what [`plain::from_gguf`] has read; refuses by name what the decoder does not do.
    complete: fn(&Gguf, &mut DecoderConfig) -> Result<(), Error>,
}

const FAMILIES: &[Family] =
    &[llama::FAMILY, mistral::FAMILY, qwen2::FAMILY, qwen3::FAMILY, phi3::FAMILY, gemma2::FAMILY, gemma3::FAMILY];

/// Description of a model in its files.
pub(super) struct Description {
    pub config: DecoderConfig,
    /// In Hugging Face's words.
    pub architecture: String,
    pub layout: Layout,
    /// Reason for taking texts alone, of a checkpoint that was made for more.
    pub other_modalities: Option<&'static str>,
}

/// Checkpoints of several modalities whose language model is one of [`FAMILIES`]: their `architectures`, their `model_type`, and
/// that of a `text_config` which does not say.
const OF_SEVERAL_MODALITIES: [(&str, &str, &str); 4] = [
    ("Gemma3ForConditionalGeneration", "gemma3", "gemma3_text"),
    ("Mistral3ForConditionalGeneration", "mistral3", "mistral"),
    ("LlavaForConditionalGeneration", "llava", "llama"),
    ("LlavaNextForConditionalGeneration", "llava_next", "llama"),
];

/// Note on checkpoints with further modalities.
const TEXTS_ALONE: &str = "images are not supported: of this checkpoint the language model alone is loaded";

/// The architectures that [`super::Model::open`] accepts, as `config.json` names them.
pub fn supported_architectures() -> Vec<&'static str> {
    FAMILIES.iter().map(|family| family.architecture).collect()
}

/// The model that a `config.json` describes.
pub(super) fn from_config_json(json: &ConfigJson) -> Result<Description, Error> {
    let architecture = json.get("architectures").and_then(|list| list.get(0)).and_then(|name| name.as_str());
    let model_type = json.text("model_type")?;
    let several = OF_SEVERAL_MODALITIES.iter().find(|(named, kind, _)| match architecture {
        Some(architecture) => architecture == *named,
        None => model_type == Some(kind),
    });
    if let Some((several, _, texts)) = several {
        refuse_quantised(json)?;
        let text_config = json.object("text_config")?.ok_or_else(|| json.error("text_config", "is missing"))?;
        let mut description =
            from_config_json(&text_config.without("architectures").with_default("model_type", texts))?;
        // transformers 5 saves it there, whatever the `text_config` says.
        description.config.tied_head |= json.flag("tie_word_embeddings")?.unwrap_or(false);
        return Ok(Description {
            architecture: (*several).to_owned(),
            other_modalities: Some(TEXTS_ALONE),
            ..description
        });
    }
    let family = match (architecture, model_type) {
        (None, None) => return Err(json.error("architectures", "is missing, and so is model_type")),
        (Some(architecture), _) => FAMILIES.iter().find(|family| family.architecture == architecture),
        (None, Some(model_type)) => FAMILIES.iter().find(|family| family.model_type == model_type),
    };
    let Some(family) = family else {
        return Err(Error::UnsupportedArchitecture {
            path: json.path().into(),
            architecture: architecture.or(model_type).unwrap_or_default().into(),
            supported: supported_architectures(),
        });
    };
    refuse_quantised(json)?;
    let config = (family.from_config_json)(json)?;
    config.check().map_err(|(key, reason)| json.error(key, reason))?;
    Ok(Description {
        config,
        architecture: family.architecture.to_owned(),
        layout: family.layout,
        other_modalities: None,
    })
}

fn refuse_quantised(json: &ConfigJson) -> Result<(), Error> {
    match json.object("quantization_config")? {
        Some(quantization) => {
            Err(quantization.unsupported("quant_method", "weights in float32, float16 or bfloat16 are, or a GGUF file"))
        }
        None => Ok(()),
    }
}

/// The model that a GGUF file describes.
pub(super) fn from_gguf(gguf: &Gguf) -> Result<Description, Error> {
    let named = gguf.metadata.required_text("general.architecture")?;
    let families = || FAMILIES.iter().filter_map(|family| Some((family.architecture, family.gguf.as_ref()?)));
    let Some((architecture, family)) = families().find(|(_, family)| family.architecture == named) else {
        return Err(Error::UnsupportedArchitecture {
            path: gguf.metadata.path().into(),
            architecture: named.into(),
            supported: families().map(|(_, family)| family.architecture).collect(),
        });
    };
    let mut config = plain::from_gguf(gguf, family.architecture)?;
    config.rope = rope::from_gguf(gguf, family.architecture, &config, family.rotates_partly)?;
    (family.complete)(gguf, &mut config)?;
    config.check().map_err(|(key, reason)| gguf.metadata.error(key, reason))?;
    Ok(Description { config, architecture: architecture.to_owned(), layout: family.layout, other_modalities: None })
}

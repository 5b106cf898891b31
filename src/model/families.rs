//! One file a model family: each maps its `config.json`, and its keys in GGUF files, to [`super::DecoderConfig`] and
//! copies no layer.

mod llama;

use super::config_json::ConfigJson;
use super::gguf::Gguf;
use super::{DecoderConfig, Error};

/// How one family spells its configuration.
pub(super) struct Family {
    /// `architectures[0]` of `config.json`.
    architecture: &'static str,
    /// `model_type` of `config.json`.
    model_type: &'static str,
    /// Reads `config.json`; refuses by name what the decoder does not do.
    from_config_json: fn(&ConfigJson) -> Result<DecoderConfig, Error>,
    /// `general.architecture` of GGUF files.
    gguf_architecture: &'static str,
    /// Whether rows of q and k are stored so that neighbours rotate together; llama.cpp's `LLAMA_ROPE_TYPE_NORM`.
    gguf_rotates_pairs: bool,
    /// Reads a GGUF file's metadata; refuses by name what the decoder does not do.
    from_gguf: fn(&Gguf) -> Result<DecoderConfig, Error>,
}

const FAMILIES: &[Family] = &[llama::FAMILY];

/// The architectures that [`super::Model::open`] accepts, as `config.json` names them.
pub fn supported_architectures() -> Vec<&'static str> {
    FAMILIES.iter().map(|family| family.architecture).collect()
}

/// The configuration that a `config.json` describes, and the architecture's name.
pub(super) fn from_config_json(json: &ConfigJson) -> Result<(DecoderConfig, &'static str), Error> {
    let architecture = json.get("architectures").and_then(|list| list.get(0)).and_then(|name| name.as_str());
    let model_type = json.text("model_type")?;
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
    if let Some(quantization) = json.object("quantization_config")? {
        return Err(
            quantization.unsupported("quant_method", "weights in float32, float16 or bfloat16 are, or a GGUF file")
        );
    }
    Ok(((family.from_config_json)(json)?, family.architecture))
}

/// The configuration that a GGUF file describes, and the architecture's name in Hugging Face's words.
pub(super) fn from_gguf(gguf: &Gguf) -> Result<(DecoderConfig, &'static str), Error> {
    let family = of_gguf(gguf)?;
    Ok(((family.from_gguf)(gguf)?, family.architecture))
}

/// Whether the file's rows of q and k must change places for a decoder that rotates halves.
pub(super) fn gguf_rotates_pairs(gguf: &Gguf) -> bool {
    of_gguf(gguf).is_ok_and(|family| family.gguf_rotates_pairs)
}

fn of_gguf(gguf: &Gguf) -> Result<&'static Family, Error> {
    let architecture = gguf.metadata.required_text("general.architecture")?;
    FAMILIES.iter().find(|family| family.gguf_architecture == architecture).ok_or_else(|| {
        Error::UnsupportedArchitecture {
            path: gguf.metadata.path().into(),
            architecture: architecture.into(),
            supported: FAMILIES.iter().map(|family| family.gguf_architecture).collect(),
        }
    })
}

//! One file a model family: each maps its `config.json` to [`super::DecoderConfig`] and copies no layer.

mod llama;

use super::config_json::ConfigJson;
use super::{DecoderConfig, Error};

/// How one family spells its configuration.
pub(super) struct Family {
    /// `architectures[0]` of `config.json`.
    architecture: &'static str,
    /// `model_type` of `config.json`.
    model_type: &'static str,
    /// Reads the configuration; refuses by name what the decoder does not do.
    from_config_json: fn(&ConfigJson) -> Result<DecoderConfig, Error>,
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
        return Err(quantization.unsupported("quant_method", "weights in float32, float16 or bfloat16, or a GGUF file"));
    }
    Ok(((family.from_config_json)(json)?, family.architecture))
}

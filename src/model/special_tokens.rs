//! Tokens that begin and end texts, and the template of conversations: what lies beside a model's weights.

use std::path::Path;

use serde_json::Value;

use super::config_json::ConfigJson;
use super::gguf::Gguf;
use super::{Error, Tokenizer};

/// What a model says about the texts it was made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SpecialTokens {
    /// Ascending.
    pub eos: Vec<u32>,
    pub bos: Option<u32>,
    /// Jinja.
    pub chat_template: Option<String>,
}

impl SpecialTokens {
    /// From a directory in Hugging Face layout whose `config.json` is `json`. `generation_config.json` decides where it
    /// speaks, `config.json` otherwise.
    pub fn of_hugging_face(directory: &Path, json: &ConfigJson) -> Result<Self, Error> {
        let generation = ConfigJson::read(&directory.join("generation_config.json"))?;
        let ids = |key: &str| {
            let ids = generation.as_ref().map(|generation| generation.token_ids(key)).transpose()?.unwrap_or_default();
            if ids.is_empty() { json.token_ids(key) } else { Ok(ids) }
        };
        Ok(Self { eos: ids("eos_token_id")?, bos: ids("bos_token_id")?.first().copied(), chat_template: None })
    }

    /// From the metadata of a GGUF file.
    pub fn of_gguf(gguf: &Gguf) -> Result<Self, Error> {
        Ok(Self { eos: gguf.eos_tokens()?, bos: gguf.bos_token()?, chat_template: gguf.chat_template()? })
    }

    /// Adds what lies beside a `tokenizer.json`: the tokenizer's own end of text, and its template, which goes before
    /// a model's.
    pub fn refine(&mut self, tokenizer: &Tokenizer) -> Result<(), Error> {
        if tokenizer.path().extension().is_some_and(|extension| extension == "json")
            && let Some(directory) = tokenizer.path().parent()
        {
            if let Some(json) = ConfigJson::read(&directory.join("tokenizer_config.json"))? {
                // A token is its text, or an object that holds it.
                let text = |token: &'_ Value| Some(token.as_str().or(token.get("content")?.as_str())?.to_owned());
                self.eos.extend(json.get("eos_token").and_then(text).and_then(|eos| tokenizer.token_id(&eos)));
                if let Some(template) = json.get("chat_template").and_then(default_template) {
                    self.chat_template = Some(template);
                }
            }
            let template = directory.join("chat_template.jinja");
            if template.exists() {
                let text = std::fs::read_to_string(&template);
                self.chat_template = Some(text.map_err(|source| Error::read(&template, "the chat template", source))?);
            }
        }
        self.eos.sort_unstable();
        self.eos.dedup();
        Ok(())
    }
}

/// A template is one string, or a list of named ones of which `default` is for plain conversations.
fn default_template(value: &Value) -> Option<String> {
    let named = |entry: &Value| (entry["name"] == "default").then(|| entry["template"].as_str().map(String::from))?;
    value.as_str().map(String::from).or_else(|| value.as_array()?.iter().find_map(named))
}

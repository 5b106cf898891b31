//! Tokens that begin and end texts, and the template of conversations: what lies beside a model's weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use time::OffsetDateTime;

use super::config_json::ConfigJson;
use super::gguf::Gguf;
use super::open::join;
use super::{ChatTemplate, Error, Tokenizer};

/// What a model says about the texts it was made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SpecialTokens {
    /// Ascending once refined; before that, the one that files call the end of a sequence comes first.
    pub eos: Vec<u32>,
    pub bos: Option<u32>,
    /// Spellings by the names that templates have for them, such as `bos_token`.
    named: BTreeMap<String, String>,
    /// Jinja, and the file that holds it.
    template: Option<(PathBuf, String)>,
}

/// What lies beside a `tokenizer.json`.
#[derive(Default)]
pub(super) struct BesideTokenizer {
    config: Option<ConfigJson>,
    /// Jinja, and the file that holds it.
    template: Option<(PathBuf, String)>,
}

impl BesideTokenizer {
    /// Of the tokenizer in `file`.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let directory = file.parent().unwrap_or(Path::new("."));
        let template = directory.join("chat_template.jinja");
        let (config, text) = std::thread::scope(|scope| {
            let config = scope.spawn(|| ConfigJson::read(&directory.join("tokenizer_config.json")));
            let text = template.exists().then(|| std::fs::read_to_string(&template)).transpose();
            (join(config), text)
        });
        let text = text.map_err(|source| Error::read(&template, "the chat template", source))?;
        Ok(Self { config: config?, template: text.map(|text| (template, text)) })
    }
}

impl SpecialTokens {
    /// Of a model in Hugging Face layout. `generation`, its `generation_config.json`, decides where it speaks, `json`, its
    /// `config.json`, otherwise.
    pub fn of_hugging_face(json: &ConfigJson, generation: Option<&ConfigJson>) -> Result<Self, Error> {
        let ids = |key: &str| {
            let ids = generation.map(|generation| generation.token_ids(key)).transpose()?.unwrap_or_default();
            if ids.is_empty() { json.token_ids(key) } else { Ok(ids) }
        };
        let bos = ids("bos_token_id")?.first().copied();
        Ok(Self { eos: ids("eos_token_id")?, bos, ..Self::default() })
    }

    /// From the metadata of a GGUF file.
    pub fn of_gguf(gguf: &Gguf) -> Result<Self, Error> {
        let template = gguf.chat_template()?.map(|template| (gguf.metadata.path().to_owned(), template));
        Ok(Self { eos: gguf.eos_tokens()?, bos: gguf.bos_token()?, template, ..Self::default() })
    }

    /// Adds what lies beside a `tokenizer.json`: the tokenizer's own end of text, the names of its tokens, and its
    /// template, which goes before a model's.
    pub fn refine(&mut self, tokenizer: &Tokenizer, beside: BesideTokenizer) {
        let spelled = |id: Option<&u32>| id.and_then(|&id| tokenizer.token(id));
        let by_id = [("bos_token", spelled(self.bos.as_ref())), ("eos_token", spelled(self.eos.first()))];
        self.named = by_id.into_iter().filter_map(|(name, token)| Some((name.to_owned(), token?))).collect();
        if let Some(config) = beside.config {
            self.named = named_tokens(&config);
            self.eos.extend(self.named.get("eos_token").and_then(|eos| tokenizer.token_id(eos)));
            if let Some(template) = config.get("chat_template").and_then(default_template) {
                self.template = Some((config.path().to_owned(), template));
            }
        }
        self.template = beside.template.or(self.template.take());
        self.eos.sort_unstable();
        self.eos.dedup();
    }

    /// The template with the tokens that it may name.
    pub fn chat_template(&self) -> Option<ChatTemplate> {
        let (path, source) = self.template.as_ref()?;
        Some(ChatTemplate::new(path, source, self.named.clone(), OffsetDateTime::now_utc()))
    }
}

/// Every `…_token` of a `tokenizer_config.json`: its text, or an object that holds it.
fn named_tokens(json: &ConfigJson) -> BTreeMap<String, String> {
    let text = |token: &Value| Some(token.as_str().or(token.get("content")?.as_str())?.to_owned());
    let named = json.entries().filter(|(key, _)| key.ends_with("_token"));
    named.filter_map(|(key, token)| Some((key.clone(), text(token)?))).collect()
}

/// A template is one string, or a list of named ones of which `default` is for plain conversations.
fn default_template(value: &Value) -> Option<String> {
    let named = |entry: &Value| (entry["name"] == "default").then(|| entry["template"].as_str().map(String::from))?;
    value.as_str().map(String::from).or_else(|| value.as_array()?.iter().find_map(named))
}

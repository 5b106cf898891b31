//! Opening a model: which files make it up, and what they say about it. No weight is read here.

use std::path::Path;

use serde_json::Value;

use super::config_json::ConfigJson;
use super::{DecoderConfig, Dtype, Error, Tokenizer, Weights, families, hugging_face};

/// A model, its headers read and checked.
#[derive(Debug)]
pub struct Model {
    /// Shapes and constants.
    pub config: DecoderConfig,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Places of all tensors.
    pub weights: Weights,
    /// The checkpoint's own format: what most weights are stored in; float16 where they are quantised.
    pub dtype: Dtype,
    /// As `config.json` names it, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// Weights in all; a tied head counts once.
    pub parameters: u64,
    eos_tokens: Vec<u32>,
    bos_token: Option<u32>,
    chat_template: Option<String>,
}

impl Model {
    /// Opens the model at `model`, a directory in Hugging Face layout, with the tokenizer at `tokenizer`, a directory
    /// or a `tokenizer.json`; they may be the same.
    ///
    /// # Errors
    /// Every kind of [`Error`] but [`Error::NotFinite`] and [`Error::Shard`].
    pub fn open(model: &Path, tokenizer: &Path) -> Result<Self, Error> {
        let json = read_json(&model.join("config.json"))?.ok_or_else(|| {
            Error::incomplete(model, "there is no config.json in it; name a directory in Hugging Face layout")
        })?;
        let (config, architecture) = families::from_config_json(&json)?;
        let tokenizer = open_tokenizer(tokenizer)?;
        let weights = hugging_face::open_weights(model, &config)?;
        if tokenizer.vocab_size() > config.vocab_size {
            let reason = format!(
                "it has ids up to {}, but the model's embedding has {} rows; name the tokenizer that belongs to the model",
                tokenizer.vocab_size() - 1,
                config.vocab_size
            );
            return Err(Error::tokenizer(tokenizer.path(), reason));
        }
        let generation = read_json(&model.join("generation_config.json"))?;
        let said = tokenizer_config(tokenizer.path())?;
        let mut eos_tokens = special_ids("eos_token_id", generation.as_ref(), &json)?;
        eos_tokens.extend(said.eos_token.as_deref().and_then(|token| tokenizer.token_id(token)));
        eos_tokens.sort_unstable();
        eos_tokens.dedup();
        let bos_token = special_ids("bos_token_id", generation.as_ref(), &json)?.first().copied();
        Ok(Self {
            dtype: weights.prevailing_dtype(),
            architecture: architecture.into(),
            parameters: config.parameters(),
            eos_tokens,
            bos_token,
            chat_template: said.chat_template,
            config,
            tokenizer,
            weights,
        })
    }

    /// Tokens that end a text, ascending.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.eos_tokens
    }

    /// The token that begins a text, where the model has one.
    pub fn bos_token(&self) -> Option<u32> {
        self.bos_token
    }

    /// The Jinja template that turns a conversation into a prompt.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}

/// `generation_config.json` decides where it speaks, `config.json` otherwise.
fn special_ids(key: &str, generation: Option<&ConfigJson>, json: &ConfigJson) -> Result<Vec<u32>, Error> {
    let from_generation = generation.map(|generation| generation.token_ids(key)).transpose()?.unwrap_or_default();
    if from_generation.is_empty() { json.token_ids(key) } else { Ok(from_generation) }
}

fn open_tokenizer(path: &Path) -> Result<Tokenizer, Error> {
    if !path.is_dir() {
        return Tokenizer::from_file(path);
    }
    let file = path.join("tokenizer.json");
    if !file.exists() {
        let missing = "there is no tokenizer.json in it; transformers writes one with AutoTokenizer.save_pretrained";
        return Err(Error::incomplete(path, missing));
    }
    Tokenizer::from_file(&file)
}

/// What lies beside a `tokenizer.json`.
#[derive(Default)]
struct TokenizerConfig {
    eos_token: Option<String>,
    chat_template: Option<String>,
}

fn tokenizer_config(tokenizer: &Path) -> Result<TokenizerConfig, Error> {
    let Some(directory) = tokenizer.parent() else { return Ok(TokenizerConfig::default()) };
    let mut said = TokenizerConfig::default();
    if let Some(json) = read_json(&directory.join("tokenizer_config.json"))? {
        // A token is its text, or an object that holds it.
        said.eos_token =
            json.get("eos_token").and_then(|token| token.as_str().or(token.get("content")?.as_str())).map(Into::into);
        said.chat_template = json.get("chat_template").and_then(default_template);
    }
    let template = directory.join("chat_template.jinja");
    if template.exists() {
        let text = std::fs::read_to_string(&template);
        said.chat_template = Some(text.map_err(|source| Error::read(&template, "the chat template", source))?);
    }
    Ok(said)
}

/// A template is one string, or a list of named ones of which `default` is for plain conversations.
fn default_template(value: &Value) -> Option<String> {
    let named = |entry: &Value| (entry["name"] == "default").then(|| entry["template"].as_str().map(String::from))?;
    value.as_str().map(String::from).or_else(|| value.as_array()?.iter().find_map(named))
}

fn read_json(path: &Path) -> Result<Option<ConfigJson>, Error> {
    match std::fs::read(path) {
        Ok(text) => ConfigJson::parse(path, &text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::read(path, "the configuration", source)),
    }
}

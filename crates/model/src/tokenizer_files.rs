//! The files beside a `tokenizer.json`, read as transformers reads them (`PreTrainedTokenizerBase._from_pretrained` and
//! `TokenizersBackend.__init__` of transformers 5): added tokens, names of special tokens, chat templates.
//!
//! It does not know what a tokenizer does with a text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::AddedToken;

use super::config_json::ConfigJson;
use super::open::join;
use super::special_tokens::read_template;
use super::{Error, Tokenizer};

/// Special tokens that every tokenizer of transformers may name; a model may have more, whose names have the same
/// ending.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Tokenizer classes for which transformers names a token that no file names.
const NAMED_BY_CLASS: [(&str, &str, &str); 2] =
    [("GemmaTokenizer", "mask_token", "<mask>"), ("GemmaTokenizerFast", "mask_token", "<mask>")];

/// The files beside a `tokenizer.json`.
#[derive(Default)]
pub(super) struct TokenizerFiles {
    /// Content of `tokenizer_config.json`.
    config: Option<ConfigJson>,
    /// Content of `special_tokens_map.json`: used if the configuration has no `added_tokens_decoder`, and then
    /// overrides it.
    map: Option<ConfigJson>,
    /// Content of `added_tokens.json`, IDs by spelling; used under the same condition.
    added: Option<ConfigJson>,
    /// Jinja source of the first file that has one, with that file.
    template: Option<(PathBuf, String)>,
}

impl TokenizerFiles {
    /// Reads the files beside the tokenizer in `file`.
    pub fn read(file: &Path) -> Result<Self, Error> {
        let directory = file.parent().unwrap_or(Path::new("."));
        // In parallel: from a bucket each file is a round trip.
        std::thread::scope(|scope| {
            let json = |name: &'static str| scope.spawn(move || ConfigJson::read(&directory.join(name)));
            let (config, map, added, processor) = (
                json("tokenizer_config.json"),
                json("special_tokens_map.json"),
                json("added_tokens.json"),
                json("chat_template.json"),
            );
            let template = read_template(&directory.join("chat_template.jinja"));
            let config = join(config)?;
            // As in transformers 5: files of older versions are ignored once the configuration lists all tokens.
            let decides = config.as_ref().is_some_and(|config| config.get("added_tokens_decoder").is_some());
            let (map, added) = (join(map)?, join(added)?);
            // `chat_template.json` belongs to a processor, for models of several modalities; it comes last.
            let template = match template? {
                Some(template) => Some(template),
                None => [&config, &join(processor)?].into_iter().flatten().find_map(template_in),
            };
            let legacy = |file: Option<ConfigJson>| file.filter(|_| !decides);
            Ok(Self { config, map: legacy(map), added: legacy(added), template })
        })
    }

    /// Only a `tokenizer_config.json`, whose `text` came from the file at `path`.
    pub fn of_configuration(path: &Path, text: &[u8]) -> Result<Self, Error> {
        let config = ConfigJson::parse(path, text)?;
        Ok(Self { template: template_in(&config), config: Some(config), ..Self::default() })
    }

    /// Returns whether any file names tokens.
    pub fn is_configured(&self) -> bool {
        self.config.is_some() || self.map.is_some()
    }

    /// All values that name tokens; later ones override earlier ones.
    fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        [&self.config, &self.map].into_iter().flatten().flat_map(ConfigJson::entries)
    }

    /// Spellings by the names that templates use: every `…_token`, those in `extra_special_tokens`, and those of the
    /// tokenizer's class.
    pub fn named_tokens(&self) -> BTreeMap<String, String> {
        let mut named = BTreeMap::new();
        let class = self.config.as_ref().and_then(|config| config.get("tokenizer_class")).and_then(Value::as_str);
        for (_, name, token) in NAMED_BY_CLASS.into_iter().filter(|(of, ..)| class == Some(of)) {
            // A default of the class, for names that no file mentions.
            if !self.entries().any(|(key, _)| key == name) {
                named.insert(name.to_owned(), token.to_owned());
            }
        }
        let mut take = |name: &str, token: &Value| {
            if let Some(spelling) = spelling(token) {
                named.insert(name.to_owned(), spelling.to_owned());
            }
        };
        for (key, value) in self.entries() {
            match value {
                Value::Object(tokens) if key == "extra_special_tokens" || key == "model_specific_special_tokens" => {
                    tokens.iter().for_each(|(name, token)| take(name, token));
                }
                token if key.ends_with("_token") => take(key, token),
                _ => {}
            }
        }
        named
    }

    /// Tokens that `tokenizer` gets in addition to those of its own file, with their properties.
    fn added_tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<AddedToken>, Error> {
        let mut tokens = Vec::new();
        if let Some(decoder) =
            self.config.as_ref().map(|config| config.object("added_tokens_decoder")).transpose()?.flatten()
        {
            // By ID: tokens that are not in the vocabulary get the next free IDs, so their order decides.
            let mut by_id = BTreeMap::new();
            for (id, token) in decoder.entries() {
                let id: u32 = id.parse().map_err(|_| decoder.error(id, "should be a token id"))?;
                let token =
                    added_token(token).ok_or_else(|| decoder.error(&id.to_string(), "should describe a token"))?;
                by_id.insert(id, token);
            }
            tokens.extend(by_id.into_values());
        }
        let named = self.named_tokens();
        if let Some(added) = &self.added {
            let mut by_id = BTreeMap::new();
            for (text, id) in added.entries() {
                let id = id.as_u64().ok_or_else(|| added.error(text, "should be a token id"))?;
                let special = named.values().any(|name| name == text);
                // A special token is matched in the text as it is, before any normalisation.
                by_id.insert(id, AddedToken::from(text.clone(), special).normalized(!special));
            }
            tokens.extend(by_id.into_values());
        }
        // Special tokens are special even if no file adds them.
        let listed =
            self.entries().filter(|(key, _)| *key == "additional_special_tokens" || *key == "extra_special_tokens");
        let listed = listed.filter_map(|(_, value)| value.as_array()).flatten().filter_map(spelling);
        let by_name = NAMED.iter().filter_map(|name| named.get(*name)).map(String::as_str);
        for text in by_name.chain(listed) {
            // One that is there already keeps its own flags, such as `lstrip`.
            if !tokens.iter().any(|token: &AddedToken| token.content == text) && !tokenizer.has_added(text) {
                tokens.push(AddedToken::from(text, true));
            }
        }
        for token in &mut tokens {
            token.special |= NAMED.iter().any(|name| named.get(*name) == Some(&token.content));
        }
        Ok(tokens)
    }

    /// Completes `tokenizer` as transformers does with the same files.
    pub fn complete(&self, tokenizer: &mut Tokenizer) -> Result<(), Error> {
        tokenizer.add(self.added_tokens(tokenizer)?)?;
        // `add_bos_token` and `add_eos_token` have no effect beside a tokenizer.json, whose post-processor decides.
        let splits = self.config.as_ref().map(|config| config.flag("split_special_tokens")).transpose()?.flatten();
        if splits == Some(true) {
            tokenizer.split_special_tokens();
        }
        Ok(())
    }

    /// Jinja source, with the file that it came from.
    pub fn into_template(self) -> Option<(PathBuf, String)> {
        self.template
    }
}

/// Spelling of a token, which is a string or an object with one.
fn spelling(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// A description of an added token, with the defaults of `tokenizers.AddedToken`.
fn added_token(value: &Value) -> Option<AddedToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    let token = AddedToken::from(value.get("content")?.as_str()?, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!special));
    Some(token)
}

/// The template in a file: one string, or a list of named ones of which `default` is for plain conversations.
fn template_in(json: &ConfigJson) -> Option<(PathBuf, String)> {
    let value = json.get("chat_template")?;
    // A list of named templates: the others are for tools or retrieval.
    let named = |entry: &Value| (entry["name"] == "default").then(|| entry["template"].as_str().map(String::from))?;
    let source = value.as_str().map(String::from).or_else(|| value.as_array()?.iter().find_map(named))?;
    Some((json.path().to_owned(), source))
}

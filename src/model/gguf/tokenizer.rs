//! The tokenizer that metadata describe, written as a `tokenizer.json` for the `tokenizers` library to read.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{Metadata, byte_level, sentence_piece};
use crate::model::{Error, Tokenizer};

/// Kinds of tokens, `enum llama_token_type` of llama.h.
mod kind {
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
}

/// What the two kinds of tokenizer fill in differently.
pub(super) struct Parts {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub decoder: Value,
    /// All of the BPE model but `type` and `vocab`.
    pub model: Map<String, Value>,
    /// Whether BOS goes before a text unless the file says otherwise.
    pub adds_bos: bool,
}

/// Tokens in the order of their ids, each a different text.
pub(super) struct Vocabulary<'a> {
    pub tokens: &'a [String],
    pub kinds: &'a [i64],
}

impl Vocabulary<'_> {
    /// Whether a token is met only where the text spells it out, never as the result of merging.
    pub fn is_spelled_out(&self, id: usize) -> bool {
        matches!(self.kinds.get(id), Some(&(kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED)))
    }
}

/// Builds the tokenizer.
///
/// # Errors
/// [`Error::Setting`], [`Error::UnsupportedSetting`] (an unknown kind of tokenizer or of pre-tokenizer),
/// [`Error::Tokenizer`].
pub(super) fn build(metadata: &Metadata) -> Result<Tokenizer, Error> {
    let vocabulary = vocabulary(metadata)?;
    let parts = match metadata.required_text("tokenizer.ggml.model")? {
        "gpt2" => byte_level::parts(metadata)?,
        "llama" => sentence_piece::parts(metadata, &vocabulary)?,
        _ => return Err(metadata.unsupported("tokenizer.ggml.model", "gpt2 and llama are")),
    };
    let added: Vec<Value> = vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| vocabulary.is_spelled_out(*id))
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": vocabulary.kinds[id] != kind::USER_DEFINED,
            })
        })
        .collect();
    let mut model = parts.model;
    model.insert("type".into(), "BPE".into());
    let ids = vocabulary.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into()));
    model.insert("vocab".into(), Value::Object(ids.collect()));
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor(metadata, &vocabulary, parts.adds_bos)?,
        "decoder": parts.decoder,
        "model": model,
    });
    Tokenizer::from_json(metadata.path(), tokenizer.to_string().as_bytes())
}

fn vocabulary(metadata: &Metadata) -> Result<Vocabulary<'_>, Error> {
    let key = "tokenizer.ggml.tokens";
    let tokens = metadata.texts(key)?.ok_or_else(|| metadata.error(key, "is missing"))?;
    let mut seen = HashSet::with_capacity(tokens.len());
    if let Some(twice) = tokens.iter().find(|token| !seen.insert(token.as_str())) {
        return Err(metadata.error(key, format!("token {twice:?} appears twice")));
    }
    let kinds = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
    if !kinds.is_empty() && kinds.len() != tokens.len() {
        let reason = format!("has {} entries for {} tokens", kinds.len(), tokens.len());
        return Err(metadata.error("tokenizer.ggml.token_type", reason));
    }
    Ok(Vocabulary { tokens, kinds })
}

/// Puts BOS before and EOS after a text where the file wants that.
fn post_processor(metadata: &Metadata, vocabulary: &Vocabulary<'_>, adds_bos: bool) -> Result<Value, Error> {
    let mut specials = Map::new();
    let mut place = |key: &str, wanted: bool| {
        if !wanted {
            return Ok(None);
        }
        let id = metadata.token_id(key)?.ok_or_else(|| metadata.error(key, "is missing, although texts want it"))?;
        let token = vocabulary.tokens.get(id as usize);
        let token = token.ok_or_else(|| metadata.error(key, format!("{id} is outside the vocabulary")))?;
        specials.insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        Ok(Some(json!({ "SpecialToken": { "id": token, "type_id": 0 } })))
    };
    let adds_bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
    let adds_eos = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let before = place("tokenizer.ggml.bos_token_id", adds_bos)?;
    let after = place("tokenizer.ggml.eos_token_id", adds_eos)?;
    if specials.is_empty() {
        return Ok(Value::Null);
    }
    let text = |id: &str, type_id: u32| json!({ "Sequence": { "id": id, "type_id": type_id } });
    let single: Vec<Value> = before.clone().into_iter().chain([text("A", 0)]).chain(after.clone()).collect();
    let pair: Vec<Value> = single.iter().cloned().chain(before).chain([text("B", 1)]).chain(after).collect();
    Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials }))
}

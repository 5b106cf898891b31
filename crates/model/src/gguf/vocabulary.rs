//! Tokens of a GGUF file. Known flaws of published files are corrected, with a warning.

use std::collections::HashMap;

use super::{Metadata, end_tokens};
use crate::Error;

/// Kinds of tokens, `enum llama_token_type` of llama.h.
mod kind {
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
}

/// Keys that name a token, with SentencePiece's default.
const NAMED: [(&str, Option<u32>); 6] = [
    ("tokenizer.ggml.bos_token_id", Some(1)),
    ("tokenizer.ggml.eos_token_id", Some(2)),
    ("tokenizer.ggml.unknown_token_id", Some(0)),
    ("tokenizer.ggml.padding_token_id", None),
    ("tokenizer.ggml.eot_token_id", None),
    ("tokenizer.ggml.eom_token_id", None),
];

/// Tokens in the order of their IDs.
pub(super) struct Vocabulary<'a> {
    pub tokens: Vec<String>,
    pub metadata: &'a Metadata,
    kinds: Vec<i64>,
    /// ID of each spelling; of several the last, as in llama.cpp and in a JSON object.
    pub ids: HashMap<String, u32>,
    /// Harmless faults of the file.
    pub warnings: Vec<String>,
}

impl<'a> Vocabulary<'a> {
    pub fn read(metadata: &'a Metadata) -> Result<Self, Error> {
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata.texts(key)?.ok_or_else(|| metadata.error(key, "is missing"))?;
        let mut warnings = Vec::new();
        // Empty spellings would match everywhere.
        let named = |(id, token): (usize, &String)| match token.is_empty() {
            true => format!("[EMPTY_{id}]"),
            false => token.clone(),
        };
        let tokens: Vec<String> = tokens.iter().enumerate().map(named).collect();
        let ids: HashMap<String, u32> =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect();
        if ids.len() < tokens.len() {
            let twice = (0..tokens.len()).find(|&id| ids[&tokens[id]] != id as u32).unwrap_or_default();
            warnings.push(format!(
                "{} tokens appear more than once, such as {:?} with the ids {twice} and {}: texts get the last id",
                tokens.len() - ids.len(),
                tokens[twice],
                ids[&tokens[twice]]
            ));
        }
        let mut kinds = at_least(metadata, "tokenizer.ggml.token_type", tokens.len())?;
        let marked = !kinds.is_empty();
        kinds.resize(tokens.len(), 0);
        // Control tokens without a mark would be shown in texts, and split in prompts.
        for id in end_tokens::all(metadata, &tokens, |id| kinds[id] == kind::CONTROL, None)? {
            if kinds[id as usize] != kind::CONTROL {
                if marked {
                    warnings.push(format!("token {id} ({:?}) is taken as a control token", tokens[id as usize]));
                }
                kinds[id as usize] = kind::CONTROL;
            }
        }
        // A file that marks its tokens decides about BOS itself.
        let bos = metadata.token_id("tokenizer.ggml.bos_token_id")?;
        if let Some(kind) = bos.filter(|_| !marked).and_then(|id| kinds.get_mut(id as usize)) {
            *kind = kind::CONTROL;
        }
        for (key, _) in NAMED {
            if let Some(id) = metadata.token_id(key)?.filter(|&id| id as usize >= tokens.len()) {
                warnings.push(format!("{key} is {id}, of {} tokens: it is ignored", tokens.len()));
            }
        }
        Ok(Self { tokens, metadata, kinds, ids, warnings })
    }

    /// Returns whether a token only occurs if the text spells it out, never as the result of merges.
    pub fn is_spelled_out(&self, id: usize) -> bool {
        matches!(self.kinds[id], kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED)
    }

    /// Returns whether a token stands for no text.
    pub fn is_special(&self, id: usize) -> bool {
        self.is_spelled_out(id) && self.kinds[id] != kind::USER_DEFINED
    }

    /// IDs whose spelling a later token has, with that token's ID.
    pub fn repeated(&self) -> impl Iterator<Item = (u32, u32)> {
        let last = |(id, token)| (id as u32, self.ids[token]);
        self.tokens.iter().enumerate().map(last).filter(|(id, last)| id != last)
    }

    /// All tokens that end an answer, the end of sequence first.
    pub fn end_tokens(&self) -> Result<Vec<u32>, Error> {
        let default = default_id(self.metadata, "tokenizer.ggml.eos_token_id");
        end_tokens::all(self.metadata, &self.tokens, |id| self.kinds[id] == kind::CONTROL, default)
    }

    /// The token that the metadata or SentencePiece's defaults give for `key`.
    pub fn named(&self, key: &str) -> Result<Option<u32>, Error> {
        let known = |id: &u32| (*id as usize) < self.tokens.len();
        Ok(self.metadata.token_id(key)?.filter(known).or(default_id(self.metadata, key).filter(known)))
    }

    /// Scores of all tokens; zero where the file has none.
    pub fn scores(&self) -> Result<Vec<f32>, Error> {
        let key = "tokenizer.ggml.scores";
        let mut scores: Vec<f32> = match self.metadata.get(key) {
            Some(super::metadata::Value::Integers(_)) => {
                at_least(self.metadata, key, self.tokens.len())?.into_iter().map(|score| score as f32).collect()
            }
            _ => self.metadata.floats(key)?.unwrap_or_default().to_vec(),
        };
        if !scores.is_empty() && scores.len() < self.tokens.len() {
            return Err(too_short(self.metadata, key, scores.len(), self.tokens.len()));
        }
        scores.resize(self.tokens.len(), 0.0);
        Ok(scores)
    }
}

fn default_id(metadata: &Metadata, key: &str) -> Option<u32> {
    // The defaults are SentencePiece's own ids; other vocabularies have none in common.
    let is_sentence_piece = matches!(metadata.text("tokenizer.ggml.model"), Ok(Some("llama")));
    NAMED.iter().find(|(name, _)| is_sentence_piece && *name == key).and_then(|(_, default)| *default)
}

/// A list with at least one entry for each token, or an empty one.
fn at_least(metadata: &Metadata, key: &str, tokens: usize) -> Result<Vec<i64>, Error> {
    let list = metadata.integers(key)?.unwrap_or_default();
    match list.len() {
        0 => Ok(Vec::new()),
        entries if entries < tokens => Err(too_short(metadata, key, entries, tokens)),
        // Entries beyond the vocabulary belong to no token.
        _ => Ok(list[..tokens].to_vec()),
    }
}

fn too_short(metadata: &Metadata, key: &str, entries: usize, tokens: usize) -> Error {
    metadata.error(key, format!("has {entries} entries for {tokens} tokens"))
}

//! Text to token ids and back, through the `tokenizers` library.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tokenizers::AddedToken;

use super::config_json::BYTE_ORDER_MARK;
use super::token_bytes::{TokenBytes, TokenDecoder};
use super::{Error, small_file, substitute};

/// A text that every tokenizer can encode, if only as unknown tokens.
const ANY_TEXT: &str = "Hello";

/// Most IDs that are searched for the longest token.
const MOST_IDS: usize = 1 << 21;

/// A model's tokenizer. Any thread may use it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    vocab_size: usize,
    /// Rows of the model's embedding, if known: no prompt may contain an ID beyond them.
    embedding_rows: Option<usize>,
    /// IDs of tokens that a later token has the same spelling as, with that token's ID.
    repeated: HashMap<u32, u32>,
    warnings: Vec<String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(super) fn from_tokenizer_json(path: &Path) -> Result<Self, Error> {
        let text = small_file::read(path, "the tokenizer", small_file::LARGEST_TOKENIZER_BYTES)?;
        Self::from_json(path, &text)
    }

    /// The tokenizer described by `text` in the format of `tokenizer.json`, from the file at `path`.
    pub(super) fn from_json(path: &Path, text: &[u8]) -> Result<Self, Error> {
        let refuse = |reason: &dyn std::fmt::Display| {
            Error::tokenizer(path, format!("the description does not make a tokenizer: {reason}"))
        };
        if let Some(reason) = substitute::reason(text) {
            return Err(Error::tokenizer(path, reason));
        }
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        // The library panics on some input that is not JSON, and on some that is. The former is checked here, so that
        // only the latter, rare and hostile, is left to be caught.
        let text = std::str::from_utf8(text).map_err(|error| refuse(&error))?;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| refuse(&error))?;
        let built = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(text));
        let built = built.map_err(|_| refuse(&"the tokenizers library gave up on it"))?;
        let mut inner = built.map_err(|error| refuse(&error))?;
        // Some files were saved with the settings of a training run. transformers sets both for each call, and not for
        // inference.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| refuse(&error))?;
        Ok(Self::from_library(path, inner, HashMap::new(), Vec::new()))
    }

    /// A tokenizer made from the file at `path`; `warnings` are sentences about that file. IDs in `repeated` are
    /// decoded as others.
    pub(super) fn from_library(
        path: &Path,
        inner: tokenizers::Tokenizer,
        repeated: HashMap<u32, u32>,
        warnings: Vec<String>,
    ) -> Self {
        let highest = inner.get_vocab(true).into_values().max();
        let vocab_size = highest.map_or(0, |id| id as usize + 1);
        Self { vocab_size, embedding_rows: None, path: path.into(), inner, repeated, warnings }
    }

    /// Harmless faults of the tokenizer's file.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn spelled_as(&self, id: u32) -> u32 {
        self.repeated.get(&id).copied().unwrap_or(id)
    }

    /// Adds `tokens`, or updates the properties of existing ones. A token in the vocabulary keeps its ID, another one
    /// gets the next.
    pub(super) fn add(&mut self, tokens: Vec<AddedToken>) -> Result<(), Error> {
        if tokens.is_empty() {
            return Ok(());
        }
        let refuse = |reason: &dyn std::fmt::Display| {
            Error::tokenizer(&self.path, format!("tokens cannot be added to it: {reason}"))
        };
        let added = catch_unwind(AssertUnwindSafe(|| self.inner.add_tokens(tokens)));
        let added = added.map_err(|_| refuse(&"the tokenizers library gave up on them"))?;
        added.map_err(|error| refuse(&error))?;
        let highest = self.inner.get_added_tokens_decoder().into_keys().max();
        self.vocab_size = self.vocab_size.max(highest.map_or(0, |id| id as usize + 1));
        Ok(())
    }

    /// Returns whether the added tokens include this spelling.
    pub(super) fn has_added(&self, text: &str) -> bool {
        self.inner.get_added_vocabulary().get_vocab().contains_key(text)
    }

    /// Treats spellings of special tokens in a text as ordinary text from now on.
    pub(super) fn split_special_tokens(&mut self) {
        self.inner.set_encode_special_tokens(true);
    }

    /// Refuses texts with IDs beyond an embedding of `rows` rows from now on.
    pub(super) fn limit_to(&mut self, rows: usize) {
        self.embedding_rows = Some(rows);
    }

    /// Token IDs of `text`. With `add_special`, special tokens that the model expects around it are added, such as BOS.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let refuse = |reason: &dyn std::fmt::Display| {
            Error::tokenizer(&self.path, format!("cannot encode a text of {} bytes: {reason}", text.len()))
        };
        // A damaged character map makes the library panic at texts that reach the damage.
        let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, add_special)));
        let encoding = encoding.map_err(|_| refuse(&"the tokenizers library gave up on it"))?;
        let encoding = encoding.map_err(|error| refuse(&error))?;
        let ids = encoding.get_ids();
        if let Some(rows) = self.embedding_rows
            && let Some(id) = ids.iter().find(|&&id| id as usize >= rows)
        {
            let spelled = self.token(*id).unwrap_or_default();
            let reason = format!(
                "the text has the token {id} ({spelled:?}), but the model's embedding has {rows} rows; leave that token out"
            );
            return Err(Error::tokenizer(&self.path, reason));
        }
        Ok(ids.to_vec())
    }

    /// Refuses a tokenizer whose library panics on any text: then the file is at fault, not the text.
    pub(super) fn try_out(&self) -> Result<(), Error> {
        let tried = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(ANY_TEXT, true).map(drop)));
        let refuse =
            |_| Error::tokenizer(&self.path, "the tokenizers library gives up on any text with it: get the file again");
        // An error is no fault of the file: a vocabulary may lack these very letters.
        tried.map(drop).map_err(refuse)
    }

    /// Text of `tokens` without special ones. IDs outside the vocabulary are skipped.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.decode_with(tokens, true)
    }

    /// Text of one token by itself, also of a special one. Of a part of a character it is U+FFFD.
    pub fn spell(&self, token: u32) -> Result<String, Error> {
        self.decode_with(&[token], false)
    }

    fn decode_with(&self, tokens: &[u32], skip_special: bool) -> Result<String, Error> {
        let refuse = |reason: &dyn std::fmt::Display| {
            Error::tokenizer(&self.path, format!("cannot decode {} tokens: {reason}", tokens.len()))
        };
        let decoded = catch_unwind(AssertUnwindSafe(|| {
            if self.repeated.is_empty() {
                self.inner.decode(tokens, skip_special)
            } else {
                let tokens: Vec<u32> = tokens.iter().map(|&id| self.spelled_as(id)).collect();
                self.inner.decode(&tokens, skip_special)
            }
        }));
        let decoded = decoded.map_err(|_| refuse(&"the tokenizers library gave up on them"))?;
        decoded.map_err(|error| refuse(&error))
    }

    /// Upper bound of the IDs that a prompt may contain.
    pub fn vocab_size(&self) -> usize {
        self.embedding_rows.map_or(self.vocab_size, |rows| rows.min(self.vocab_size))
    }

    /// Length of the longest token's spelling in bytes; unbounded if a file claims more IDs than any tokenizer has.
    pub fn longest_token_bytes(&self) -> usize {
        if self.vocab_size > MOST_IDS {
            return usize::MAX;
        }
        let spelled = (0..self.vocab_size as u32).filter_map(|id| self.inner.id_to_token(id));
        spelled.map(|token| token.len()).max().unwrap_or(0).max(1)
    }

    /// IDs that stand for no text: BOS, EOS, padding, chat markers.
    pub fn special_tokens(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let special = |id: u32| added.get(&id).is_some_and(|token| token.special);
        let repeated = self.repeated.iter().filter(|&(_, &last)| special(last)).map(|(&id, _)| id);
        added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).chain(repeated).collect()
    }

    /// Bytes of all tokens.
    ///
    /// # Errors
    /// A decoder whose tokens have no bytes of their own, and more IDs than any tokenizer has.
    pub fn token_bytes(&self) -> Result<TokenBytes, Error> {
        let refuse =
            |reason: String| Error::tokenizer(&self.path, format!("its tokens cannot be told as bytes: {reason}"));
        if self.vocab_size > MOST_IDS {
            return Err(refuse(format!("it has {} IDs", self.vocab_size)));
        }
        let decoder = serde_json::to_value(self.inner.get_decoder()).map_err(|error| refuse(error.to_string()))?;
        let decoder = TokenDecoder::new(&decoder).map_err(refuse)?;
        let of = |id| self.token(id).map_or_else(Vec::new, |spelling| decoder.bytes(spelling));
        let tokens: Vec<Vec<u8>> = (0..self.vocab_size as u32).map(of).collect();
        Ok(TokenBytes::new(tokens.iter().map(Vec::as_slice), self.special_tokens()))
    }

    /// ID of the token with exactly this spelling.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Spelling of a token, or `None` for an unknown ID.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(self.spelled_as(id))
    }

    /// The file that the tokenizer was made from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.path.display(), self.vocab_size)
    }
}

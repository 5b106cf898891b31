//! Text to token ids and back, through the `tokenizers` library.

use std::path::{Path, PathBuf};

use super::Error;

/// A model's tokenizer. Cheap to share by reference; any thread may use it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(super) fn from_tokenizer_json(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read(path).map_err(|source| Error::read(path, "the tokenizer", source))?;
        Self::from_json(path, &text)
    }

    /// The tokenizer that `text`, in the format of `tokenizer.json`, describes. It came from the file at `path`.
    pub(super) fn from_json(path: &Path, text: &[u8]) -> Result<Self, Error> {
        let refuse = |reason: &dyn std::fmt::Display| {
            Error::tokenizer(path, format!("the description does not make a tokenizer: {reason}"))
        };
        // The library panics on some of what is not JSON, and on some that is: the first is looked for here, so that only
        // the second, rare and hostile, is left to be caught.
        let text = std::str::from_utf8(text).map_err(|error| refuse(&error))?;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| refuse(&error))?;
        let built = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(text));
        let built = built.map_err(|_| refuse(&"the tokenizers library gave up on it"))?;
        let inner = built.map_err(|error| refuse(&error))?;
        let highest = inner.get_vocab(true).into_values().max();
        Ok(Self { vocab_size: highest.map_or(0, |id| id as usize + 1), path: path.into(), inner })
    }

    /// The ids of `text`. With `add_special` those that the model expects around it, such as BOS, are added.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, add_special);
        let encoding =
            encoding.map_err(|error| Error::tokenizer(&self.path, format!("cannot encode a text: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `tokens`, special ones left out. Ids outside the vocabulary give nothing.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.inner
            .decode(tokens, true)
            .map_err(|error| Error::tokenizer(&self.path, format!("cannot decode {} tokens: {error}", tokens.len())))
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Ids that stand for no text: BOS, EOS, padding, chat markers.
    pub fn special_tokens(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect()
    }

    /// The id of a token spelled exactly so.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How a token is spelled, unless there is none of this id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The file it was made from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.path.display(), self.vocab_size)
    }
}

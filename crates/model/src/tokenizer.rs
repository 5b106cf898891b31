//! Text to token ids and back, through the `tokenizers` library.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tokenizers::AddedToken;

use super::config_json::BYTE_ORDER_MARK;
use super::{Error, small_file, substitute};

/// A text that every tokenizer gets through, be it as unknown tokens.
const ANY_TEXT: &str = "Hello";

/// Ids that are looked through for the longest token.
const MOST_IDS: usize = 1 << 21;

/// A model's tokenizer. Cheap to share by reference; any thread may use it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    vocab_size: usize,
    /// Rows of the model's embedding, where that is known: no prompt may hold an id beyond them.
    embedding_rows: Option<usize>,
    /// Ids of tokens that are spelled as a later one, and the ids of those.
    repeated: HashMap<u32, u32>,
    warnings: Vec<String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub(super) fn from_tokenizer_json(path: &Path) -> Result<Self, Error> {
        let text = small_file::read(path, "the tokenizer", small_file::LARGEST_TOKENIZER_BYTES)?;
        Self::from_json(path, &text)
    }

    /// The tokenizer that `text`, in the format of `tokenizer.json`, describes. It came from the file at `path`.
    pub(super) fn from_json(path: &Path, text: &[u8]) -> Result<Self, Error> {
        let refuse = |reason: &dyn std::fmt::Display| {
            Error::tokenizer(path, format!("the description does not make a tokenizer: {reason}"))
        };
        if let Some(reason) = substitute::reason(text) {
            return Err(Error::tokenizer(path, reason));
        }
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        // The library panics on some of what is not JSON, and on some that is: the first is looked for here, so that only
        // the second, rare and hostile, is left to be caught.
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

    /// A tokenizer made from the file at `path`; `warnings` are sentences about that file. Ids in `repeated` are read as others.
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

    /// Harmless faults of its file.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn spelled_as(&self, id: u32) -> u32 {
        self.repeated.get(&id).copied().unwrap_or(id)
    }

    /// Adds `tokens`, or gives those that are there the properties that they have here. One that is in the vocabulary keeps its
    /// id, another gets the next one.
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

    /// Tells that a token spelled so is an added one.
    pub(super) fn has_added(&self, text: &str) -> bool {
        self.inner.get_added_vocabulary().get_vocab().contains_key(text)
    }

    /// Spellings of special tokens in a text are text like any other from now on.
    pub(super) fn split_special_tokens(&mut self) {
        self.inner.set_encode_special_tokens(true);
    }

    /// Refuses texts with ids for which an embedding of `rows` has no row from now on.
    pub(super) fn limit_to(&mut self, rows: usize) {
        self.embedding_rows = Some(rows);
    }

    /// The ids of `text`. With `add_special` those that the model expects around it, such as BOS, are added.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, Error> {
        let refuse = |reason: &dyn std::fmt::Display| {
            Error::tokenizer(&self.path, format!("cannot encode a text of {} bytes: {reason}", text.len()))
        };
        // A damaged map of characters makes the library panic, at texts that come upon the damage.
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

    /// Refuses a tokenizer of which the library gives up on any text: the file is at fault there, not the text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub(super) fn try_out(&self) -> Result<(), Error> {
        let tried = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(ANY_TEXT, true).map(drop)));
        let refuse =
            |_| Error::tokenizer(&self.path, "the tokenizers library gives up on any text with it: get the file again");
        // A vocabulary may lack these very letters.
        tried.map(drop).map_err(refuse)
    }

    /// The text of `tokens`, special ones left out. Ids outside the vocabulary give nothing.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        let refuse = |reason: &dyn std::fmt::Display| {
            Error::tokenizer(&self.path, format!("cannot decode {} tokens: {reason}", tokens.len()))
        };
        let decoded = catch_unwind(AssertUnwindSafe(|| {
            if self.repeated.is_empty() {
                self.inner.decode(tokens, true)
            } else {
                let tokens: Vec<u32> = tokens.iter().map(|&id| self.spelled_as(id)).collect();
                self.inner.decode(&tokens, true)
            }
        }));
        let decoded = decoded.map_err(|_| refuse(&"the tokenizers library gave up on them"))?;
        decoded.map_err(|error| refuse(&error))
    }

    /// One more than the highest id that a prompt may hold.
    pub fn vocab_size(&self) -> usize {
        self.embedding_rows.map_or(self.vocab_size, |rows| rows.min(self.vocab_size))
    }

    /// Length of the longest token's spelling; without a bound where a file claims more ids than any tokenizer has.
    pub fn longest_token_bytes(&self) -> usize {
        if self.vocab_size > MOST_IDS {
            return usize::MAX;
        }
        let spelled = (0..self.vocab_size as u32).filter_map(|id| self.inner.id_to_token(id));
        spelled.map(|token| token.len()).max().unwrap_or(0).max(1)
    }

    /// Ids that stand for no text: BOS, EOS, padding, chat markers.
    pub fn special_tokens(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let special = |id: u32| added.get(&id).is_some_and(|token| token.special);
        let repeated = self.repeated.iter().filter(|&(_, &last)| special(last)).map(|(&id, _)| id);
        added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).chain(repeated).collect()
    }

    /// The id of a token spelled exactly so.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How a token is spelled, unless there is none of this id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(self.spelled_as(id))
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

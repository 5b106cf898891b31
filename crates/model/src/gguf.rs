//! GGUF: one file that holds configuration, tokenizer and weights.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The reader in `candle_core::quantized` is not
//! used because it divides by an alignment of zero and lets the last of two equal names win.

mod byte_level;
mod cursor;
mod end_tokens;
mod header;
mod metadata;
mod pre_tokenizers;
mod sentence_piece;
mod tensors;
mod tokenizer;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::config_json::LARGEST_SIZE;
use super::families::{self, Description};
use super::layout::Layout;
use super::stored::{Encoding, WeightFile};
use super::{DecoderConfig, Dtype, Error, Files, Tokenizer, Weights};
use header::TensorInfo;
pub(super) use metadata::Metadata;
use tensors::{ROPE_FACTORS, ROPE_FACTORS_SHORT_LONG};
use vocabulary::Vocabulary;

/// Reads a header and drops it.
pub(super) fn fuzz_header(file: &dyn super::ReadAt) {
    let _ = header::read(file);
}

/// An open file with a consistent header.
pub(super) struct Gguf {
    pub metadata: Metadata,
    file: Arc<WeightFile>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Reads and checks the header of the file at `path`.
    pub fn open(path: &Path, files: &dyn Files) -> Result<Self, Error> {
        let bytes = files.open(path).map_err(|source| Error::read(path, "the model", source))?;
        let header = header::read(&*bytes).map_err(|reason| Error::malformed(path, reason))?;
        let metadata = Metadata::new(path, header.metadata);
        let parts = metadata.size("split.count")?.unwrap_or(1);
        if parts > 1 {
            return Err(metadata.unsupported("split.count", "a single file is (llama-gguf-split --merge makes one)"));
        }
        Ok(Self { metadata, file: Arc::new(WeightFile { path: path.into(), bytes }), tensors: header.tensors })
    }

    /// The description of the model in the metadata.
    pub fn description(&self) -> Result<Description, Error> {
        families::from_gguf(self)
    }

    /// Returns whether a tensor of this name exists.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Rows of the embedding: the size of the vocabulary, with padding.
    pub fn embedding_rows(&self) -> Result<usize, Error> {
        let rows = self.tensors.get("token_embd.weight").and_then(|info| info.shape.first());
        match rows.and_then(|&rows| usize::try_from(rows).ok()) {
            Some(rows) if rows > 0 && rows as u64 <= LARGEST_SIZE => Ok(rows),
            Some(rows) => Err(Error::malformed(self.metadata.path(), format!("its embedding has {rows} rows"))),
            None => Err(Error::malformed(self.metadata.path(), "it has no tensor token_embd.weight")),
        }
    }

    /// Divisors of the `pairs` rotary frequencies of a head, if the file has them.
    pub fn rope_factors(&self, pairs: usize) -> Result<Option<Vec<f32>>, Error> {
        self.divisors(ROPE_FACTORS, pairs)
    }

    /// Divisors for short and for long sequences.
    pub fn short_and_long_rope_factors(&self, pairs: usize) -> Result<[Option<Vec<f32>>; 2], Error> {
        let [short, long] = ROPE_FACTORS_SHORT_LONG;
        Ok([self.divisors(short, pairs)?, self.divisors(long, pairs)?])
    }

    fn divisors(&self, name: &str, pairs: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let path = self.metadata.path();
        if info.shape != [pairs as u64] || info.encoding != Ok(Encoding::Plain(Dtype::F32)) {
            return Err(Error::malformed(path, format!("{name} should be {pairs} numbers of type F32")));
        }
        let mut factors = vec![0f32; pairs];
        let read = self.file.bytes.read_exact_at(bytemuck::cast_slice_mut(&mut factors), info.offset);
        read.map_err(|source| Error::read(path, name, source))?;
        match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
            Some(factor) => Err(Error::malformed(path, format!("{name} holds {factor}"))),
            None => Ok(Some(factors)),
        }
    }

    /// The tokenizer described by the metadata.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        tokenizer::build(&self.metadata)
    }

    /// Finds all tensors of `config`.
    pub fn weights(&self, config: &DecoderConfig, layout: Layout) -> Result<Weights, Error> {
        tensors::find(self, config, layout)
    }

    /// IDs of tokens that end a text, the end of sequence first.
    pub fn eos_tokens(&self) -> Result<Vec<u32>, Error> {
        let rows = self.embedding_rows()?;
        let mut ids = self.vocabulary()?.map(|vocabulary| vocabulary.end_tokens()).transpose()?.unwrap_or_default();
        ids.retain(|&id| (id as usize) < rows);
        Ok(ids)
    }

    /// ID of the token that begins a text.
    pub fn bos_token(&self) -> Result<Option<u32>, Error> {
        let rows = self.embedding_rows()?;
        let id = self.vocabulary()?.map(|vocabulary| vocabulary.named("tokenizer.ggml.bos_token_id")).transpose()?;
        Ok(id.flatten().filter(|&id| (id as usize) < rows))
    }

    /// The vocabulary; `None` if the tokenizer is in a file of its own.
    fn vocabulary(&self) -> Result<Option<Vocabulary<'_>>, Error> {
        let has = self.metadata.get("tokenizer.ggml.tokens").is_some();
        has.then(|| Vocabulary::read(&self.metadata)).transpose()
    }

    /// Jinja template for conversations; of several the unnamed one.
    pub fn chat_template(&self) -> Result<Option<String>, Error> {
        let unnamed = self.metadata.text("tokenizer.chat_template")?;
        Ok(unnamed.or(self.metadata.text("tokenizer.chat_template.default")?).map(String::from))
    }
}

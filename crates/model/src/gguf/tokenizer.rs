//! The tokenizer that metadata describe, made with the `tokenizers` library.

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer as Library,
};

use super::vocabulary::Vocabulary;
use super::{Metadata, byte_level, sentence_piece};
use crate::{Error, Tokenizer};

/// The parts in which the two kinds of tokenizer differ. Values are in the format of a `tokenizer.json`.
pub(super) struct Parts {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub decoder: Value,
    pub merges: Vec<(String, String)>,
    pub ignore_merges: bool,
    pub byte_fallback: bool,
    /// Token for text that no other token covers.
    pub unknown: Option<String>,
    /// True if BOS is added before a text unless the file says otherwise.
    pub adds_bos: bool,
}

/// Decoders for tokens that spell a space `▁` and bytes `<0x0A>`.
pub(super) fn text_decoders() -> Vec<Value> {
    vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ]
}

/// Builds the tokenizer.
///
/// # Errors
/// [`Error::Setting`], [`Error::UnsupportedSetting`] (an unknown kind of tokenizer or of pre-tokenizer),
/// [`Error::Tokenizer`].
pub(super) fn build(metadata: &Metadata) -> Result<Tokenizer, Error> {
    let key = "tokenizer.ggml.model";
    let mut vocabulary = Vocabulary::read(metadata)?;
    let parts = match metadata.required_text(key)? {
        "gpt2" | "gemma4" => byte_level::parts(&mut vocabulary)?,
        "llama" => sentence_piece::parts(&vocabulary)?,
        other => {
            let kind = match other {
                "bert" => "it is WordPiece, which encoders have; ",
                "t5" => "it is Unigram; ",
                "rwkv" => "it is the tokenizer of RWKV; ",
                "no_vocab" | "none" => "the file has no vocabulary, name the model's tokenizer.json beside it; ",
                _ => "",
            };
            return Err(metadata.unsupported(key, &format!("{kind}gpt2, llama and gemma4 are")));
        }
    };
    let post_processor = post_processor(&mut vocabulary, parts.adds_bos)?;
    // Built directly: writing and parsing a tokenizer.json takes several times as long.
    let made = std::panic::catch_unwind(|| make(&vocabulary, parts, post_processor));
    let refuse = |reason: String| {
        let reason = format!("the description does not make a tokenizer: {reason}");
        Error::tokenizer(metadata.path(), reason)
    };
    let made = made.map_err(|_| refuse("the tokenizers library gave up on it".into()))?;
    let library = made.map_err(|error| refuse(error.to_string()))?;
    let repeated = vocabulary.repeated().collect();
    Ok(Tokenizer::from_library(metadata.path(), library, repeated, vocabulary.warnings))
}

fn make(vocabulary: &Vocabulary<'_>, parts: Parts, post_processor: Value) -> tokenizers::Result<Library> {
    let ids: Vocab = vocabulary.ids.iter().map(|(token, &id)| (token.clone(), id)).collect();
    let mut model = BPE::builder()
        .vocab_and_merges(ids, parts.merges)
        .ignore_merges(parts.ignore_merges)
        .byte_fallback(parts.byte_fallback)
        .fuse_unk(parts.unknown.is_some());
    if let Some(unknown) = parts.unknown {
        model = model.unk_token(unknown);
    }
    let mut library = Library::new(model.build()?);
    library.with_normalizer(serde_json::from_value::<Option<NormalizerWrapper>>(parts.normalizer)?)?;
    library.with_pre_tokenizer(serde_json::from_value::<Option<PreTokenizerWrapper>>(parts.pre_tokenizer)?);
    library.with_post_processor(serde_json::from_value::<Option<PostProcessorWrapper>>(post_processor)?);
    library.with_decoder(serde_json::from_value::<Option<DecoderWrapper>>(parts.decoder)?);
    let strips = markers_strip(vocabulary.metadata)?;
    let added = vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, token)| vocabulary.is_spelled_out(*id) && vocabulary.ids[token.as_str()] == *id as u32);
    let added = added.map(|(id, token)| {
        let strip = strips && !matches!(token.as_str(), "<unk>" | "<s>" | "<|endoftext|>");
        AddedToken::from(token.clone(), vocabulary.is_special(id)).normalized(false).rstrip(strip)
    });
    library.add_tokens(added.collect::<Vec<_>>())?;
    Ok(library)
}

/// Returns whether markers absorb the white space that follows them. No key says so; as in llama.cpp, it depends on the
/// name Phi 3.
fn markers_strip(metadata: &Metadata) -> Result<bool, Error> {
    let name = metadata.text("general.name")?.unwrap_or_default().to_lowercase();
    Ok(name.contains("phi-3") || name.contains("phi3"))
}

/// Post-processor that adds BOS before and EOS after a text, as the file demands.
fn post_processor(vocabulary: &mut Vocabulary<'_>, adds_bos: bool) -> Result<Value, Error> {
    let metadata = vocabulary.metadata;
    let mut specials = Map::new();
    let mut place = |key: &str, wanted: bool| {
        if !wanted {
            return Ok(None);
        }
        let Some(id) = vocabulary.named(key)? else {
            vocabulary.warnings.push(format!("{key} is missing, although texts want it: texts go without"));
            return Ok(None);
        };
        let token = &vocabulary.tokens[id as usize];
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

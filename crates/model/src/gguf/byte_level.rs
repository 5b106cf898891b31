//! BPE with merges that come with the file (`tokenizer.ggml.model` = `gpt2`), over bytes in all but a few vocabularies.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::Metadata;
use super::pre_tokenizers::{self, Alphabet};
use super::tokenizer::{Parts, text_decoders};
use super::vocabulary::Vocabulary;
use crate::Error;

/// Pre-tokenizer, merges and byte mapping for BPE.
pub(super) fn parts(vocabulary: &mut Vocabulary<'_>) -> Result<Parts, Error> {
    let metadata = vocabulary.metadata;
    let key = "tokenizer.ggml.pre";
    let of_model = match metadata.text("tokenizer.ggml.model")? {
        Some("gemma4") => "gemma4",
        // Files from before the key existed; llama.cpp takes its default for them, too.
        _ => "default",
    };
    let name = metadata.text(key)?.unwrap_or(of_model);
    let Some(cut) = pre_tokenizers::named(name) else {
        let names: Vec<_> = pre_tokenizers::names().collect();
        return Err(metadata.unsupported(key, &format!("{} are", names.join(", "))));
    };
    // Isolated: matches and the text between them both become pieces.
    let split = |pattern: &&str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let splits = cut.patterns.iter().map(split);
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let merges = merges(metadata, vocabulary)?;
    let (normalizer, steps, decoder): (_, Vec<Value>, _) = match cut.alphabet {
        Alphabet::Bytes => (Value::Null, splits.chain([bytes.clone()]).collect(), bytes),
        Alphabet::Text => {
            let escape = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
            (escape, splits.collect(), json!({ "type": "Sequence", "decoders": text_decoders() }))
        }
    };
    Ok(Parts {
        normalizer,
        pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": steps }),
        decoder,
        merges,
        ignore_merges: cut.ignore_merges,
        byte_fallback: cut.alphabet == Alphabet::Text,
        unknown: None,
        adds_bos: cut.adds_bos,
    })
}

/// Merges as pairs of tokens; a space separates the two, and may begin the first. Of equal pairs the first keeps its
/// rank, and pairs with or for unknown tokens are dropped.
fn merges(metadata: &Metadata, vocabulary: &mut Vocabulary<'_>) -> Result<Vec<(String, String)>, Error> {
    let key = "tokenizer.ggml.merges";
    let merges = metadata.texts(key)?.ok_or_else(|| metadata.error(key, "is missing"))?;
    let mut seen = HashSet::with_capacity(merges.len());
    let mut pairs = Vec::with_capacity(merges.len());
    let mut whole = String::new();
    let mut useless = 0;
    for merge in merges {
        // The first character may itself be a space, so the search begins at the second.
        let space = merge.char_indices().skip(1).find(|(_, character)| *character == ' ').map(|(at, _)| at);
        let pair = space.map(|space| (&merge[..space], &merge[space + 1..]));
        let makes_token = |&(first, second): &(&str, &str)| {
            whole.clear();
            whole.push_str(first);
            whole.push_str(second);
            [first, second, &whole].iter().all(|token| vocabulary.ids.contains_key(*token))
        };
        match pair.filter(makes_token) {
            // The first of equal merges counts: its place is its rank.
            Some(pair) if seen.insert(pair) => pairs.push((pair.0.to_owned(), pair.1.to_owned())),
            Some(_) => {}
            None => useless += 1,
        }
    }
    if useless > 0 {
        let reason = "name or make tokens that are not in the vocabulary: they are ignored";
        vocabulary.warnings.push(format!("{useless} of {} merges {reason}", merges.len()));
    }
    Ok(pairs)
}

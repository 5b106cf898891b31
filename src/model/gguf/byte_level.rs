//! Byte-level BPE (`tokenizer.ggml.model` = `gpt2`): merges come with the file, the way texts are cut before by name.
//!
//! Names and patterns are those of llama.cpp (`src/llama-vocab.cpp`, `llm_tokenizer_bpe`): each pattern in turn cuts the
//! pieces that the one before has left, matches and what lies between them alike.

use serde_json::{Map, Value, json};

use super::Metadata;
use super::tokenizer::Parts;
use crate::model::Error;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// A way of cutting texts.
struct Cut {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// A piece that is a token as a whole is taken as that token, whatever the merges say.
    ignore_merges: bool,
    adds_bos: bool,
}

const CUTS: &[Cut] = &[
    Cut {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
        adds_bos: false,
    },
    Cut { names: &["gpt-2", "phi-2"], patterns: &[GPT2], ignore_merges: false, adds_bos: false },
    Cut { names: &["smollm"], patterns: &[r"\p{N}", GPT2], ignore_merges: false, adds_bos: false },
    Cut { names: &["llama-bpe", "llama3", "llama-v3"], patterns: &[LLAMA3], ignore_merges: true, adds_bos: true },
    Cut { names: &["qwen2"], patterns: &[QWEN2], ignore_merges: false, adds_bos: false },
];

/// Cuts, merges and bytes.
pub(super) fn parts(metadata: &Metadata) -> Result<Parts, Error> {
    let key = "tokenizer.ggml.pre";
    let name = metadata.text(key)?.unwrap_or("default");
    let Some(cut) = CUTS.iter().find(|cut| cut.names.contains(&name)) else {
        let names: Vec<_> = CUTS.iter().flat_map(|cut| cut.names).copied().collect();
        return Err(metadata.unsupported(key, &format!("{} are", names.join(", "))));
    };
    let split = |pattern: &&str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let steps: Vec<Value> = cut.patterns.iter().map(split).chain([bytes.clone()]).collect();
    let mut model = Map::new();
    model.insert("ignore_merges".into(), cut.ignore_merges.into());
    model.insert("merges".into(), merges(metadata)?);
    Ok(Parts {
        normalizer: Value::Null,
        pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": steps }),
        decoder: bytes,
        model,
        adds_bos: cut.adds_bos,
    })
}

/// Pairs of tokens; a space separates the two, and may begin the first.
fn merges(metadata: &Metadata) -> Result<Value, Error> {
    let key = "tokenizer.ggml.merges";
    let merges = metadata.texts(key)?.ok_or_else(|| metadata.error(key, "is missing"))?;
    let pair = |merge: &String| {
        let second = merge.char_indices().skip(1).find(|(_, character)| *character == ' ');
        let (space, _) = second.ok_or_else(|| metadata.error(key, format!("{merge:?} is not a pair of tokens")))?;
        Ok(json!([merge[..space], merge[space + 1..]]))
    };
    merges.iter().map(pair).collect()
}

//! SentencePiece's BPE (`tokenizer.ggml.model` = `llama`): pieces with scores, and byte fallback for other text.
//!
//! SentencePiece joins the two neighbours whose joint piece has the highest score (Kudo and Richardson, 2018; `bpe_model.cc`).
//! The same happens with merges ranked by score, each piece giving one merge for every way to cut it in two pieces.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::tokenizer::{Parts, text_decoders};
use super::vocabulary::Vocabulary;
use crate::Error;

/// Stand-in for a space in pieces.
const SPACE: &str = "▁";

/// Longest piece whose splits are listed, in bytes. Longer ones do not occur in practice, and listing all splits takes
/// quadratic space.
const LONGEST_PIECE_BYTES: usize = 1024;

/// Scores as ranked merges, and spaces as their stand-in.
pub(super) fn parts(vocabulary: &Vocabulary<'_>) -> Result<Parts, Error> {
    let adds_space = vocabulary.metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let escape = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    // A word at the beginning of a text gets the same token as one behind a space.
    let prefix = json!({ "type": "Prepend", "prepend": SPACE });
    let normalizers = if adds_space { vec![prefix, escape] } else { vec![escape] };
    let mut decoders = text_decoders();
    if adds_space {
        // The space that was prepended is no part of the text.
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let unknown = vocabulary.named("tokenizer.ggml.unknown_token_id")?;
    Ok(Parts {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        merges: merges(vocabulary)?,
        ignore_merges: false,
        byte_fallback: true,
        unknown: unknown.map(|id| vocabulary.tokens[id as usize].clone()),
        adds_bos: true,
    })
}

/// All splits of pieces into two others, ordered by the score of the piece.
fn merges(vocabulary: &Vocabulary<'_>) -> Result<Vec<(String, String)>, Error> {
    let scores = vocabulary.scores()?;
    // Control tokens are matched as a whole before BPE, and must not arise from merges.
    let joinable = |id: &usize| !vocabulary.is_spelled_out(*id);
    let ids: HashMap<&str, usize> =
        (0..scores.len()).filter(joinable).map(|id| (vocabulary.tokens[id].as_str(), id)).collect();
    let mut pieces: Vec<usize> = ids.values().copied().collect();
    // Ties by ID, as in SentencePiece: the earlier piece wins.
    pieces.sort_unstable_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut merges = Vec::new();
    for id in pieces {
        let piece = vocabulary.tokens[id].as_str();
        if piece.len() > LONGEST_PIECE_BYTES {
            continue;
        }
        let mut cuts: Vec<(usize, usize, usize)> = piece
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*ids.get(&piece[..at])?, *ids.get(&piece[at..])?, at)))
            .collect();
        // By the ids of the parts, as in the converter of transformers.
        cuts.sort_unstable();
        merges.extend(cuts.into_iter().map(|(_, _, at)| (piece[..at].to_owned(), piece[at..].to_owned())));
    }
    Ok(merges)
}

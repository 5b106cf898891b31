//! Tokens that end an answer.
//!
//! Files name one token as the end of a sequence, and chat models end their turns with another one. As llama.cpp does, those
//! are found by how they are spelled (`src/llama-vocab.cpp`, `special_eog_ids`), beside all that the metadata name.

use super::Metadata;
use crate::Error;

/// Spellings that end an answer in every vocabulary.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Spellings that end a turn if the file marks them as control tokens. llama.cpp relies on the metadata for these.
const ENDS_IF_CONTROL: &[&str] = &["<|END_OF_TURN_TOKEN|>", "<|eot|>", "[|endofturn|]", "<|endofturn|>"];

/// Padding, repository and separator tokens of code completion: named by the metadata, or else by one of these
/// spellings.
const CODE_COMPLETION: &[(&str, &[&str])] = &[
    ("tokenizer.ggml.fim_pad_token_id", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    ("tokenizer.ggml.fim_rep_token_id", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("tokenizer.ggml.fim_sep_token_id", &["<|file_sep|>"]),
];

const NAMED: [&str; 3] = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Tokens of `tokens` that end an answer by their spelling. `is_control` returns whether the file marks a token.
pub(super) fn by_spelling(tokens: &[String], is_control: impl Fn(usize) -> bool) -> Vec<u32> {
    let ends = |&(id, token): &(usize, &String)| {
        let token = token.as_str();
        ENDS.contains(&token) || (ENDS_IF_CONTROL.contains(&token) && is_control(id))
    };
    tokens.iter().enumerate().filter(ends).map(|(id, _)| id as u32).collect()
}

/// All tokens that end an answer, the file's end of sequence first. `default` stands for that one if the file does not
/// name it.
pub(super) fn all(
    metadata: &Metadata,
    tokens: &[String],
    is_control: impl Fn(usize) -> bool,
    default: Option<u32>,
) -> Result<Vec<u32>, Error> {
    let known = |id: Option<u32>| id.filter(|&id| (id as usize) < tokens.len());
    let mut ends = Vec::new();
    for (key, default) in NAMED.into_iter().zip([default, None, None]) {
        ends.extend(known(metadata.token_id(key)?).or(known(default)));
    }
    for (key, spellings) in CODE_COMPLETION {
        match known(metadata.token_id(key)?) {
            Some(id) => ends.push(id),
            None => {
                let spelled = |id: &usize| spellings.contains(&tokens[*id].as_str()) && is_control(*id);
                ends.extend((0..tokens.len()).find(spelled).map(|id| id as u32));
            }
        }
    }
    ends.extend(by_spelling(tokens, is_control));
    let has = |spelling: &str| ends.iter().any(|&id| tokens[id as usize] == spelling);
    // In these vocabularies <|end|> ends a message, and an answer has several; and </s> is ordinary text.
    let messages =
        (has("<|return|>") && has("<|call|>")) || ((has("<|call|>") || has("<|calls|>")) && has("<|flush|>"));
    let texts = has("<|tool_response>") || has("<|plamo:eos|>");
    let ends_message = |id: &u32| messages && tokens[*id as usize] == "<|end|>";
    let is_text = |id: &u32| texts && tokens[*id as usize] == "</s>";
    let mut seen = std::collections::BTreeSet::new();
    ends.retain(|id| seen.insert(*id) && !is_text(id) && !ends_message(id));
    Ok(ends)
}

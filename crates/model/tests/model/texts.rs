//! Difficult texts and conversations have the ids that transformers gives them, with the tokenizers of real models.

use std::collections::BTreeMap;
use std::path::Path;

use flashjob_model::{ChatTemplate, Texts, Tokenizer};
use md5::{Digest, Md5};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::golden;
use crate::support::real_files::real_files;

/// Output of `scripts/golden_texts.py`.
#[derive(Deserialize)]
struct Golden {
    texts: Vec<Written>,
    conversations: Vec<Vec<Value>>,
    tokenizers: BTreeMap<String, Expected>,
}

/// A text, or a piece and how many times it is repeated.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Once(String),
    Repeated(String, usize),
}

impl Written {
    fn text(&self) -> String {
        match self {
            Self::Once(text) => text.clone(),
            Self::Repeated(piece, times) => piece.repeat(*times),
        }
    }
}

/// Everything that one tokenizer makes of the texts.
#[derive(Deserialize)]
struct Expected {
    /// Count and checksum of a text's ids, the same with special tokens around it, checksum of the text that the first ids give.
    texts: Vec<(usize, String, usize, String, String)>,
    /// Checksum of the rendered text, count and checksum of its ids; nothing where the template refuses the conversation.
    conversations: Vec<Option<(String, usize, String)>>,
}

/// The tokenizer in `directory`, which holds nothing else of a model.
fn open(directory: &Path) -> (Tokenizer, ChatTemplate) {
    let model = TempDir::new().unwrap();
    std::fs::write(model.path().join("config.json"), r#"{"architectures": ["Any"]}"#).unwrap();
    let texts = Texts::open(model.path(), directory).unwrap();
    (texts.tokenizer, texts.chat_template.unwrap())
}

fn checksum(bytes: &[u8]) -> String {
    Md5::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of_ids(ids: &[u32]) -> (usize, String) {
    (ids.len(), checksum(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>()))
}

/// Beginning of what differs, for a message.
fn beginning<T: Clone>(values: &[T]) -> Vec<T> {
    values[..values.len().min(40)].to_vec()
}

#[test]
fn difficult_texts_and_conversations_have_the_ids_of_transformers() {
    let Some(folder) = real_files() else { return };
    let golden: Golden = serde_json::from_slice(&std::fs::read(golden::directory("texts.json")).unwrap()).unwrap();
    let texts: Vec<String> = golden.texts.iter().map(Written::text).collect();
    assert_eq!((texts.len(), golden.conversations.len(), golden.tokenizers.len()), (49, 13, 5));
    let mut different = Vec::new();
    for (name, expected) in &golden.tokenizers {
        let (tokenizer, template) = open(&folder.join("tokenizers").join(name));
        assert_eq!((expected.texts.len(), expected.conversations.len()), (49, 13), "{name}");
        for (text, (count, sum, count_surrounded, sum_surrounded, read)) in texts.iter().zip(&expected.texts) {
            let bare = tokenizer.encode(text, false).unwrap();
            let surrounded = tokenizer.encode(text, true).unwrap();
            let shown: String = text.chars().take(60).collect();
            for (ids, count, sum) in [(&bare, count, sum), (&surrounded, count_surrounded, sum_surrounded)] {
                if of_ids(ids) != (*count, sum.clone()) {
                    different.push(format!("{name}: {shown:?}: {} ids, not {count}: {:?}", ids.len(), beginning(ids)));
                }
            }
            let decoded = tokenizer.decode(&bare).unwrap();
            if checksum(decoded.as_bytes()) != *read {
                different
                    .push(format!("{name}: {shown:?} is read as {:?}", decoded.chars().take(60).collect::<String>()));
            }
        }
        for (index, (messages, expected)) in golden.conversations.iter().zip(&expected.conversations).enumerate() {
            let rendered = template.render(messages);
            let found = rendered.as_ref().ok().map(|text| {
                let (count, sum) = of_ids(&tokenizer.encode(text, false).unwrap());
                (checksum(text.as_bytes()), count, sum)
            });
            if found != *expected {
                different.push(format!("{name}: conversation {index}: {found:?}, not {expected:?}: {rendered:?}"));
            }
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

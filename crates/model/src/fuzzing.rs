//! Entry points for fuzzers: this crate's readers of headers and a model's texts, with assertions about accepted input.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread::Builder;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::special_tokens::SpecialTokens;
use super::texts_process::STACK_BYTES;
use super::tokenizer_files::TokenizerFiles;
use super::{Ask, ChatTemplate, Error, TextFacts, Texts, Tokenizer, gguf, safetensors};

/// ASCII's record separator, between the parts of an input.
const SEPARATOR: u8 = 0x1e;

/// A safetensors file.
pub fn safetensors_header(file: &[u8]) {
    let Ok(tensors) = safetensors::read_header(&file.to_vec(), &safetensors::HeaderBytes::default()) else { return };
    let held: u64 = tensors.values().map(|entry| entry.size_bytes).sum();
    assert!(held < file.len() as u64, "tensors and a header fit into their file");
    for (name, entry) in tensors {
        assert!(entry.offset.checked_add(entry.size_bytes).is_some_and(|end| end <= file.len() as u64), "{name}");
    }
}

/// Reads the header of a GGUF file.
pub fn gguf_header(file: &[u8]) {
    gguf::fuzz_header(&file.to_vec());
}

/// A chat template, and behind a separator a conversation as JSON. A template may refuse what it likes; it ends, and leaves the stack
/// that production gives it.
pub fn chat_template(input: &[u8]) {
    let [source, messages] = parts(input);
    let Ok(source) = std::str::from_utf8(source) else { return };
    let messages = match serde_json::from_slice(messages) {
        Ok(Value::Array(messages)) => messages,
        _ => vec![json!({"role": "user", "content": String::from_utf8_lossy(messages)})],
    };
    as_in_production(|| {
        let named = ["bos_token", "eos_token"].map(|name| (name.to_owned(), format!("<{name}>")));
        let template = ChatTemplate::new(Path::new("t"), source, BTreeMap::from(named), OffsetDateTime::UNIX_EPOCH);
        let first = template.render(&messages).map_err(|error| error.to_string());
        let second = template.render(&messages).map_err(|error| error.to_string());
        assert_eq!(first, second, "a conversation is rendered twice alike");
    });
}

/// A `tokenizer.json`, a `tokenizer_config.json` and a text, with separators between them.
pub fn tokenizer(input: &[u8]) {
    let [tokenizer, config, text] = parts(input);
    let text = String::from_utf8_lossy(text);
    as_in_production(|| {
        let Ok(texts) = opened(tokenizer, config) else { return };
        let facts = TextFacts::of(&texts);
        let ask = Ask::Text { text: text.to_string(), add_special: true };
        if let Ok(ids) = ask.answer(&texts) {
            assert!(ids.iter().all(|&id| (id as usize) < ROWS), "{ids:?} are rows of the embedding");
            let _ = texts.tokenizer.decode(&ids);
        }
        let _ = Ask::Messages(vec![json!({"role": "user", "content": text})].into()).answer(&texts);
        assert!(facts.vocab_size <= ROWS && facts.eos_tokens.iter().all(|&id| (id as usize) < ROWS), "{facts:?}");
    });
}

/// Rows of the embedding that a fuzzed tokenizer is for: fewer than ids that an input may name.
const ROWS: usize = 300;

fn opened(tokenizer: &[u8], config: &[u8]) -> Result<Texts, Error> {
    let mut tokenizer = Tokenizer::from_json(Path::new("tokenizer.json"), tokenizer)?;
    let files = TokenizerFiles::of_configuration(Path::new("tokenizer_config.json"), config)?;
    files.complete(&mut tokenizer)?;
    Texts::new("fuzzed".to_owned(), None, (tokenizer, files), SpecialTokens::default(), Some(ROWS))
}

/// The parts of an input; those that it lacks are empty.
fn parts<const COUNT: usize>(input: &[u8]) -> [&[u8]; COUNT] {
    let mut parts = input.splitn(COUNT, |&byte| byte == SEPARATOR);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// Runs `work` on a stack like those of [`super::texts_process`].
fn as_in_production(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        // Without a thread there is nothing to be found.
        if let Ok(Err(panic)) = thread.map(|thread| thread.join()) {
            resume_unwind(panic);
        }
    });
}

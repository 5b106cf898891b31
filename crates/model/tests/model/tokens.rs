//! Texts become the ids that the original tokenizers give, and ids become texts again.

use flashjob_model::Tokenizer;
use serde::Deserialize;

use super::altered::Checkpoint;
use super::golden;

#[derive(Deserialize)]
struct Expected {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

/// `fixture` lies in `tests/golden/tokenizers` and names what `scripts/golden_gguf.py` had encode its texts.
fn assert_encodes_as(tokenizer: &Tokenizer, fixture: &str) {
    let json = std::fs::read(golden::directory("tokenizers").join(fixture)).unwrap();
    let expected: Vec<Expected> = serde_json::from_slice(&json).unwrap();
    assert!(expected.len() > 5);
    for Expected { text, ids, decoded } in expected {
        assert_eq!(tokenizer.encode(&text, true).unwrap(), ids, "{fixture}: {text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{fixture}: {text:?}");
    }
}

#[test]
fn a_tokenizer_json_is_taken_as_it_is() {
    let model = Checkpoint::open(&golden::directory("llama-gqa"), &golden::directory("llama-gqa")).unwrap();
    assert_encodes_as(&model.texts.tokenizer, "smollm.json");
    assert_eq!(model.texts.tokenizer.vocab_size(), 288);
    // Only tokenizer_config.json names <|im_end|>, only generation_config.json <|endoftext|>.
    assert_eq!(model.texts.eos_tokens, [0, 2]);
    assert_eq!(model.texts.bos_token, Some(1));
    assert!(model.texts.chat_template.as_ref().unwrap().source().contains("<|im_start|>assistant"));
}

#[test]
fn gguf_metadata_make_the_same_tokenizer() {
    let path = golden::directory("llama-gguf");
    let model = Checkpoint::open(&path, &path).unwrap();
    assert_encodes_as(&model.texts.tokenizer, "smollm.json");
    // Metadata name <|im_end|>; <|endoftext|> is known by its spelling.
    assert_eq!(model.texts.eos_tokens, [0, 2]);
    assert_eq!(model.texts.bos_token, Some(1));
    assert!(model.texts.chat_template.as_ref().unwrap().source().contains("<|im_start|>assistant"));
}

#[test]
fn tokenizers_of_other_kinds_encode_as_their_originals() {
    for kind in ["llama-bpe", "llama-sentence-piece"] {
        let tokenizer = Tokenizer::open(&golden::directory("tokenizers").join(format!("{kind}.gguf"))).unwrap();
        assert_encodes_as(&tokenizer, &format!("{kind}.json"));
    }
}

#[test]
fn special_tokens_are_added_only_on_request() {
    let tokenizer = Tokenizer::open(&golden::directory("tokenizers/llama-bpe.gguf")).unwrap();
    let with = tokenizer.encode("a text", true).unwrap();
    assert_eq!(with[0], 1);
    assert_eq!(tokenizer.encode("a text", false).unwrap(), with[1..]);
}

#[test]
fn an_embedding_may_have_more_rows_than_the_tokenizer_has_tokens() {
    // Padding, which many models have.
    let tokenizer = golden::directory("llama-mqa-tied");
    assert_eq!(
        Checkpoint::open(&golden::directory("llama-sharded"), &tokenizer).unwrap().texts.tokenizer.vocab_size(),
        272
    );
}

/// Texts of the fixture that have no special tokens in them, with their ids.
fn plain_texts(fixture: &str) -> Vec<Expected> {
    let json = std::fs::read(golden::directory("tokenizers").join(fixture)).unwrap();
    let all: Vec<Expected> = serde_json::from_slice(&json).unwrap();
    all.into_iter().filter(|expected| expected.decoded == expected.text).collect()
}

#[test]
fn the_bytes_of_its_tokens_make_a_text() {
    let paths = ["llama-gqa", "tokenizers/llama-bpe.gguf", "tokenizers/llama-sentence-piece.gguf"];
    for (path, fixture) in paths.into_iter().zip(["smollm.json", "llama-bpe.json", "llama-sentence-piece.json"]) {
        let tokenizer = Tokenizer::open(&golden::directory(path)).unwrap();
        let table = tokenizer.token_bytes().unwrap();
        let texts = plain_texts(fixture);
        assert!(texts.len() > 3, "{path}");
        for Expected { text, ids, .. } in texts {
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| table.of_text(id)).copied().collect();
            let made = String::from_utf8(bytes).unwrap();
            // SentencePiece puts a space before a text, which its decoder takes away.
            assert!(made == text || made == format!(" {text}"), "{path}: {text:?} became {made:?}");
        }
        // Any tokens, parts of characters among them; but not with SentencePiece, whose decoder shows each byte of a run that is no text as
        // U+FFFD, also those that are characters by themselves.
        let is_taken = |id: &u32| !path.contains("sentence-piece") || std::str::from_utf8(table.of_text(*id)).is_ok();
        let size = tokenizer.vocab_size() as u32;
        let ids: Vec<u32> = (0..size).map(|id| id * 7 % size).filter(is_taken).collect();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| table.of_text(id)).copied().collect();
        let valid = |text: &str| text.replace('\u{fffd}', "");
        let (made, decoded) = (String::from_utf8_lossy(&bytes).into_owned(), tokenizer.decode(&ids).unwrap());
        assert_eq!(valid(&made), valid(&decoded), "{path}");
    }
}

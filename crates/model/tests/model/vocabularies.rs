//! llama.cpp's own suite: the vocabularies of real models, texts, and the ids that they have there.

use flashjob_model::Tokenizer;

use crate::support::real_files::real_files;

/// Separator of texts in a `.inp` file.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

/// Vocabularies that come with texts and ids, and how many there are.
const WITH_TEXTS: &[(&str, usize)] = &[
    ("command-r", 46),
    ("deepseek-coder", 46),
    ("deepseek-llm", 46),
    ("falcon", 46),
    ("gemma-4", 46),
    ("gpt-2", 46),
    ("llama-bpe", 46),
    ("llama-spm", 46),
    ("mpt", 46),
    ("phi-3", 46),
    ("qwen2", 46),
    ("qwen35", 50),
    ("refact", 46),
    ("starcoder", 46),
];

#[test]
fn all_texts_of_the_suite_have_the_ids_of_llama_cpp() {
    let Some(folder) = real_files() else { return };
    let mut wrong = Vec::new();
    for &(name, count) in WITH_TEXTS {
        let path = folder.join(format!("llama.cpp/ggml-vocab-{name}.gguf"));
        let read = |extension: &str| std::fs::read_to_string(format!("{}.{extension}", path.display())).unwrap();
        let tokenizer = Tokenizer::open(&path).unwrap();
        let (texts, ids) = (read("inp"), read("out"));
        let texts: Vec<&str> = texts.split(SEPARATOR).collect();
        let ids: Vec<&str> = ids.lines().collect();
        assert_eq!(ids.len(), count, "{name}");
        for (text, expected) in texts.iter().zip(ids) {
            let expected: Vec<u32> = expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let found = tokenizer.encode(text, false).unwrap();
            if found != expected {
                wrong.push(format!("{name}: {text:?}: {found:?}, expected {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn vocabularies_without_texts_load_and_read_what_they_wrote() {
    let Some(folder) = real_files() else { return };
    let text = "Hello, world! 1234567 été 漢字 🦙\n\n  x = y";
    for name in ["aquila", "baichuan", "gpt-neox"] {
        let tokenizer = Tokenizer::open(&folder.join(format!("llama.cpp/ggml-vocab-{name}.gguf"))).unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{name}");
    }
}

#[test]
fn vocabularies_of_other_kinds_are_refused_by_name() {
    let Some(folder) = real_files() else { return };
    for (name, said) in [("bert-bge", "it is WordPiece"), ("nomic-bert-moe", "it is Unigram")] {
        let error = Tokenizer::open(&folder.join(format!("llama.cpp/ggml-vocab-{name}.gguf"))).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

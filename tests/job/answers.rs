//! Answers of real models: the likeliest tokens according to llama.cpp, of the same GGUF file.

use std::collections::BTreeMap;
use std::path::Path;

use flashjob_model::{ChatTemplate, Texts, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::job_without_model;
use crate::model::golden;
use crate::support::real_files::real_files;

/// The lead of a token's logit over the next one's, according to llama.cpp, from which on both programs must choose it: llama.cpp
/// rounds activations to 8 bits, which moved this lead by up to 0.4 in trials.
const CLEAR_LEAD: f32 = 0.7;

/// Output of `scripts/golden_answers.py`.
#[derive(Deserialize)]
struct Golden {
    files: BTreeMap<String, Vec<Answered>>,
}

#[derive(Deserialize)]
struct Answered {
    /// The conversation of which the file's template makes the prompt.
    messages: Option<Vec<Value>>,
    prompt: String,
    ids: Vec<u32>,
    /// Ids, spellings, and their leads.
    answer: Vec<(u32, String, f32)>,
    /// The last token ended it.
    ends: bool,
}

impl Answered {
    /// Tokens before the first that might as well have been another one.
    fn clear(&self) -> usize {
        self.answer.iter().take_while(|(.., lead)| *lead >= CLEAR_LEAD).count()
    }

    /// The text of the first `count` tokens.
    fn text(&self, count: usize) -> String {
        self.answer[..count].iter().map(|(_, text, _)| text.as_str()).collect()
    }
}

/// Tokenizer and template of the file at `path`.
fn texts(path: &Path) -> (Tokenizer, Option<ChatTemplate>) {
    let texts = Texts::open(path, path).unwrap();
    (texts.tokenizer, texts.chat_template)
}

/// The lines that a job on the file at `path` answers `asked` with.
fn answers(path: &Path, asked: &[Answered]) -> Vec<Value> {
    let results = TempDir::new().unwrap();
    let dataset = results.path().join("dataset");
    let line = |asked: &Answered| match &asked.messages {
        Some(messages) => json!({"messages": messages}).to_string(),
        None => json!({"prompt": asked.prompt}).to_string(),
    };
    std::fs::write(&dataset, asked.iter().map(line).collect::<Vec<String>>().join("\n")).unwrap();
    job_without_model(&results)
        .args(["--model".into(), path.as_os_str().to_owned(), "--dataset-path".into(), dataset.into_os_string()])
        .args(["--dataset=jsonl", "--output-len=48", "--temperature=0", "--warmup=0"])
        .args(["--dtype=float32", "--max-model-len=1024", "--max-num-seqs=16"])
        .run()
        .expect_code(0);
    let outputs = super::answers_of(&results);
    outputs.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Compares everything about the file called `name`, at least `least` tokens of answers.
fn compare(name: &str, least: usize) {
    let Some(folder) = real_files() else { return };
    let path = folder.join(name);
    let mut golden: Golden =
        serde_json::from_slice(&std::fs::read(golden::directory("answers.json")).unwrap()).unwrap();
    let asked = golden.files.remove(name).unwrap();
    let (tokenizer, template) = texts(&path);
    for Answered { messages, prompt, ids, .. } in &asked {
        if let Some(messages) = messages {
            assert_eq!(&template.as_ref().unwrap().render(messages).unwrap(), prompt);
        }
        assert_eq!(&tokenizer.encode(prompt, messages.is_none()).unwrap(), ids, "{prompt:?}");
    }
    let answers = answers(&path, &asked);
    assert_eq!(answers.len(), asked.len());
    for (asked, answer) in asked.iter().zip(&answers) {
        let clear = asked.clear();
        let text = answer["output"].as_str().unwrap();
        assert!(text.starts_with(&asked.text(clear)), "{:?}: {text:?}, expected {:?}", asked.prompt, asked.text(clear));
        if clear == asked.answer.len() {
            let reason = if asked.ends { "stop" } else { "length" };
            assert_eq!((text, &answer["finish_reason"]), (asked.text(clear).as_str(), &json!(reason)));
            assert_eq!(answer["output_tokens"], clear, "{:?}", asked.prompt);
        }
    }
    let ended = asked.iter().filter(|asked| asked.ends && asked.clear() == asked.answer.len()).count();
    let compared: usize = asked.iter().map(Answered::clear).sum();
    assert!(ended >= 3 && compared >= least, "{ended} answers ended, {compared} tokens were compared");
}

#[test]
fn a_chat_model_of_the_llama_family_answers_as_in_llama_cpp() {
    compare("SmolLM2-135M-Instruct.Q4_1.gguf", 140);
}

#[test]
fn a_model_of_the_gemma_3_family_answers_as_in_llama_cpp() {
    compare("gemma-3-270m-q4_k_m.gguf", 200);
}

//! Conversations become the prompts that transformers makes of them, and what a template refuses it says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use flashjob_model::ChatTemplate;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use md5::{Digest, Md5};

use super::golden;

/// Output of `scripts/golden_chat.py` for one template.
#[derive(Deserialize)]
struct Golden {
    now: String,
    named_tokens: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Value>,
    rendered: Option<String>,
    refused: Option<String>,
}

#[test]
fn conversations_are_rendered_as_transformers_renders_them() {
    for name in ["blocks", "gemma", "llama", "mistral", "qwen", "smollm"] {
        let path = golden::directory("chat").join(format!("{name}.jinja"));
        let source = std::fs::read_to_string(&path).unwrap();
        let golden: Golden = serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
        let now = OffsetDateTime::parse(&golden.now, &Rfc3339).unwrap();
        let template = ChatTemplate::new(&path, &source, golden.named_tokens, now);
        assert_eq!(golden.cases.len(), 8, "{name}");
        for case in golden.cases {
            match (template.render(&case.messages), case.rendered, case.refused) {
                (Ok(rendered), Some(expected), None) => assert_eq!(rendered, expected, "{name}: {:?}", case.messages),
                (Err(error), None, Some(message)) => {
                    let path = path.display();
                    let expected = format!("the chat template of {path} does not take this conversation: {message}");
                    assert_eq!(error.to_string(), expected);
                }
                (rendered, ..) => panic!("{name}: {:?}: {rendered:?}", case.messages),
            }
        }
    }
}

/// Output of `scripts/golden_chat.py` for templates of real models: the MD5 sum and the characters of each text, or
/// nothing where transformers refuses the conversation.
#[derive(Deserialize)]
struct Real {
    now: String,
    named_tokens: BTreeMap<String, String>,
    conversations: Vec<Vec<Value>>,
    sums: BTreeMap<String, Vec<Option<String>>>,
}

#[test]
fn templates_of_real_models_give_what_transformers_makes_of_them() {
    let output = Command::new("scripts/real-files").current_dir(crate::support::project()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let real: Real =
        serde_json::from_slice(&std::fs::read(golden::directory("chat").join("real.json")).unwrap()).unwrap();
    let now = OffsetDateTime::parse(&real.now, &Rfc3339).unwrap();
    let mut different = Vec::new();
    for (name, sums) in &real.sums {
        let path = files.join(format!("llama.cpp/templates/{name}.jinja"));
        let source = std::fs::read_to_string(&path).unwrap();
        let template = ChatTemplate::new(&path, &source, real.named_tokens.clone(), now);
        for (index, (messages, expected)) in real.conversations.iter().zip(sums).enumerate() {
            let rendered = template.render(messages);
            let sum = |text: &String| format!("{} {}", hexadecimal(&Md5::digest(text)), text.chars().count());
            if rendered.as_ref().ok().map(sum) != *expected {
                let refused = rendered.err().map(|error| error.to_string());
                different.push(format!("(\"{name}\", {index}), // expected {expected:?}, refused: {refused:?}"));
            }
        }
    }
    assert!(different.is_empty(), "{} renders:\n{}", different.len(), different.join("\n"));
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn each_feature_of_jinja_and_python_does_what_it_does_in_transformers() {
    let path = golden::directory("chat").join("features.json");
    let features: Vec<(String, Option<String>)> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let messages = [json!({"role": "user", "content": "  What is 2 < 3 & \"4\" > 'ü'?\n"})];
    let now = OffsetDateTime::parse("2026-02-03T04:05:06Z", &Rfc3339).unwrap();
    let mut different = Vec::new();
    for (source, expected) in features {
        let template = ChatTemplate::new("t".as_ref(), &source, BTreeMap::new(), now);
        let rendered = template.render(&messages);
        if rendered.as_ref().ok() != expected.as_ref() {
            different.push(format!("{source}: {rendered:?}, expected {expected:?}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn a_template_that_cannot_be_applied_says_where_and_why() {
    for (source, reason) in [
        ("\n{% for message in messages %}", "(in its line 2)"),
        ("{{ messages[0].content.frobnicate() }}", "string has no method named frobnicate (in its line 1)"),
        ("{{ messages | frobnicate }}", "filter frobnicate is unknown (in its line 1)"),
        ("{{ unknown.attribute }}", "(in its line 1)"),
        ("{{ strftime_now('%Q') }}", "strftime_now(\"%Q\"):"),
        ("{{ messages | tojson(indent=9000000000000000) }}", "tojson: an indent of 9000000000000000 is not supported"),
        ("{% for x in none %}{% endfor %}", "None is not iterable (in its line 1)"),
        ("{% include 'another' %}", "unknown statement include"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion limit"),
    ] {
        let template = ChatTemplate::new("a/t.json".as_ref(), source, BTreeMap::new(), OffsetDateTime::UNIX_EPOCH);
        let said = template.render(&[json!({"role": "user", "content": "x"})]).unwrap_err().to_string();
        assert!(said.starts_with("the chat template of a/t.json cannot be applied: "), "{source}: {said}");
        assert!(said.contains(reason), "{source}: {said}");
    }
}

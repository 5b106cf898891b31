//! Conversations become the prompts that transformers makes of them, and what a template refuses it says.

use std::collections::BTreeMap;

use flashjob::model::ChatTemplate;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::golden;

/// What `scripts/golden_chat.py` wrote about one template.
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

#[test]
fn a_template_that_cannot_be_applied_says_where_and_why() {
    for (source, reason) in [
        ("\n{% for message in messages %}", "(in its line 2)"),
        ("{{ messages[0].content.frobnicate() }}", "string has no method named frobnicate (in its line 1)"),
        ("{{ messages | frobnicate }}", "filter frobnicate is unknown (in its line 1)"),
        ("{{ unknown.attribute }}", "(in its line 1)"),
        ("{{ strftime_now('%Q') }}", "strftime_now(\"%Q\"):"),
        ("{{ messages | tojson(sort_keys=true) }}", "tojson(sort_keys=true)"),
        ("{% include 'another' %}", "unknown statement include"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion limit"),
    ] {
        let template = ChatTemplate::new("a/t.json".as_ref(), source, BTreeMap::new(), OffsetDateTime::UNIX_EPOCH);
        let said = template.render(&[json!({"role": "user", "content": "x"})]).unwrap_err().to_string();
        assert!(said.starts_with("the chat template of a/t.json cannot be applied: "), "{source}: {said}");
        assert!(said.contains(reason), "{source}: {said}");
    }
}

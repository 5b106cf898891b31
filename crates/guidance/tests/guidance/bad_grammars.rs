//! What is no grammar, too large for one, or without an end.

use flashjob_guidance::{Error, Grammar, LONGEST_GRAMMAR_BYTES};
use serde_json::{Value, json};

use super::{Vocabulary, schema};

fn nested_schema(depth: usize) -> Value {
    (0..depth).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}))
}

/// What is refused before a text is begun, with a part of the sentence.
fn refused() -> Vec<(Grammar, &'static str)> {
    let text = |text: &str| text.to_owned();
    let large = json!({"enum": (0..200_000).collect::<Vec<u32>>()});
    vec![
        (schema(large), "bytes; up to"),
        (Grammar::JsonSchema(text("{")), "EOF"),
        (Grammar::JsonSchema(format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000))), "recursion limit"),
        (Grammar::JsonSchema(text("7")), ""),
        (schema(json!(false)), ""),
        (schema(json!({"enum": []})), ""),
        (schema(json!({"type": "unheard-of"})), ""),
        (schema(json!({"allOf": [{"type": "string"}, {"type": "integer"}]})), ""),
        (schema(json!({"type": "integer", "minimum": 3, "maximum": 2})), ""),
        (schema(json!({"type": "string", "minLength": 5, "maxLength": 2})), ""),
        (schema(json!({"$ref": "https://example.com/schema.json"})), ""),
        (schema(json!({"$ref": "#/$defs/missing"})), ""),
        (schema(json!({"not": {"type": "string"}})), ""),
        (Grammar::Regex(text("(")), ""),
        (Grammar::Regex(text("a{2,1}")), ""),
        (Grammar::Regex(text(r"(a)\1")), ""),
        (Grammar::Regex("(".repeat(10_000)), "brackets in each other"),
        (Grammar::Regex(format!("{}a{}", "(".repeat(500), ")".repeat(500))), "brackets in each other"),
        (Grammar::Regex("x".repeat(LONGEST_GRAMMAR_BYTES + 1)), "bytes; up to"),
        (Grammar::Choice(Vec::new()), "it has no text"),
        (Grammar::Choice(vec![String::new()]), "it has no text"),
        (Grammar::Lark(text("root ::= \"a\"")), "Backus-Naur"),
        (Grammar::Lark(text("start: missing")), ""),
        (Grammar::Lark(text("")), ""),
        (Grammar::Lark(text("start: \"a")), ""),
        (Grammar::Lark(format!("start: {}\"a\"{}", "(".repeat(5_000), ")".repeat(5_000))), "brackets in each other"),
    ]
}

#[test]
fn what_is_no_grammar_or_too_large_is_refused_with_a_sentence() {
    let vocabulary = Vocabulary::of_tiny_model();
    for (grammar, part) in refused() {
        let short = format!("{grammar:?}").chars().take(100).collect::<String>();
        match vocabulary.draw(&grammar, 0, 1) {
            Ok(_) => panic!("{short} is taken"),
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains(part), "{short}: {said}");
                assert!(said.len() < 500 && !said.contains('\n'), "{short}: {said}");
                assert!(matches!(error, Error::Limit { .. } | Error::Invalid { .. }), "{short}: {error:?}");
            }
        }
    }
}

/// Large or endless, and all the same within limits: each ends with a text, an error or the tokens that there are for it.
fn demanding() -> Vec<Grammar> {
    let text = |text: &str| text.to_owned();
    vec![
        Grammar::Regex(text("(a{0,1000}){0,1000}")),
        Grammar::Regex(text("((a|b)*a(a|b){18}){1,3}")),
        Grammar::Regex(text("(.*a){30}.*")),
        Grammar::Regex(text("(x+x+)+y")),
        Grammar::Regex(text(r"(\p{L}{1,500}\d){1,500}")),
        Grammar::Regex((0..2000).map(|number| format!("(word{number})?")).collect()),
        Grammar::Regex("a".repeat(10_000)),
        Grammar::Choice((0..5000).map(|number| format!("choice {number}")).collect()),
        Grammar::Lark(text("start: start")),
        Grammar::Lark(text("start: \"a\" start")),
        Grammar::Lark(text("start: a\na: b\nb: a")),
        Grammar::Lark(text("start: e\ne: e e | e e e | \"a\" | ")),
        Grammar::Lark(
            (0..3000).map(|number| format!("r{number}: \"x\" r{}\n", number + 1)).collect::<String>()
                + "r3000: \"y\"\nstart: r0\n",
        ),
        schema(json!({"$ref": "#"})),
        schema(json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})),
        schema(json!({"allOf": [{"$ref": "#"}]})),
        schema(json!({"type": "object", "properties": {"self": {"$ref": "#"}}, "required": ["self"]})),
        schema(json!({"type": "array", "minItems": 100_000, "items": {"type": "integer"}})),
        schema(json!({"type": "string", "minLength": 100_000, "maxLength": 1_000_000})),
        schema(json!({"type": "string", "pattern": "^(a|aa|aaa){50,100}$"})),
        schema(nested_schema(60)),
        schema(json!({"type": "object",
            "properties": (0..1000).map(|number| (format!("p{number}"), json!({"type": "integer"}))).collect::<serde_json::Map<_, _>>()})),
        schema(
            json!({"anyOf": (0..500).map(|number| json!({"type": "object", "properties": {format!("k{number}"): {"const": number}},
            "required": [format!("k{number}")]})).collect::<Vec<_>>()}),
        ),
    ]
}

#[test]
fn what_is_large_or_without_an_end_takes_no_longer_than_its_limits() {
    let vocabulary = Vocabulary::of_tiny_model();
    for grammar in demanding() {
        match vocabulary.draw(&grammar, 3, 60) {
            Ok(_) => {}
            Err(error) => {
                let said = error.to_string();
                assert!(said.len() < 500 && !said.contains('\n'), "{said}");
            }
        }
    }
    // Nothing that one of them has left behind is in the way of others.
    assert!(vocabulary.draw(&Grammar::Regex("ab".to_owned()), 0, 9).unwrap().is_some());
}
